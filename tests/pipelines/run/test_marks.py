"""Marks: a fold over lines that only grow, whatever a kill leaves of the last one."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.errors import BadInput, CorruptShard
from pipelines.run import marks
from pipelines.run.marks import Mark, Verdict
from tests.warm import python


def mark(name: str, verdict: Verdict = "real", label: str | None = None) -> Mark:
    return Mark(sha256=hashlib.sha256(name.encode()).hexdigest(), key=name, verdict=verdict, label=label)


def verdicts(run: Path) -> dict[str, tuple[str, str | None]]:
    return {found.key: (found.verdict, found.label) for found in marks.read(run).current.values()}


def test_the_last_mark_of_an_image_holds(tmp_path: Path) -> None:
    assert marks.read(tmp_path) == marks.Marks()
    marks.append(tmp_path, [mark("a"), mark("b", "synthetic")])
    marks.append(tmp_path, [mark("a", "real", "cat"), mark("c", "skip")])
    assert verdicts(tmp_path) == {"a": ("real", "cat"), "b": ("synthetic", None), "c": ("skip", None)}
    lines = [json.loads(line) for line in (tmp_path / "marks.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["a", "b", "a", "c"]
    assert lines[0]["action"] == lines[1]["action"] != lines[2]["action"]


def test_undo_takes_back_one_action_after_the_other_and_forgets_nothing(tmp_path: Path) -> None:
    marks.append(tmp_path, [mark("a")])
    marks.append(tmp_path, [mark("a", "synthetic"), mark("b", "synthetic")])
    assert set(marks.undo(tmp_path)) == {mark("a").sha256, mark("b").sha256}
    assert verdicts(tmp_path) == {"a": ("real", None)}
    assert marks.undo(tmp_path) == (mark("a").sha256,)
    assert verdicts(tmp_path) == {} and marks.undo(tmp_path) == ()
    marks.append(tmp_path, [mark("b")])
    assert verdicts(tmp_path) == {"b": ("real", None)}
    assert len((tmp_path / "marks.jsonl").read_text().splitlines()) == 6


def test_a_cut_last_line_at_any_byte_costs_that_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "marks.jsonl"
    marks.append(tmp_path, [mark("a")])
    first = file.stat().st_size
    marks.append(tmp_path, [mark("b", "real", "cat")])
    whole = file.read_bytes()
    for size in range(first, len(whole) + 1):
        file.write_bytes(whole[:size])
        is_whole = size >= len(whole) - 1  # the line break may be missing
        assert marks.read(tmp_path).cut == (not is_whole and size > first)
        assert set(verdicts(tmp_path)) == ({"a", "b"} if is_whole else {"a"})
        marks.append(tmp_path, [mark("c", "skip")])
        assert not marks.read(tmp_path).cut
        assert set(verdicts(tmp_path)) == ({"a", "b", "c"} if is_whole else {"a", "c"})


def test_a_line_in_the_middle_that_is_no_mark_is_named(tmp_path: Path) -> None:
    marks.append(tmp_path, [mark("a")])
    with (tmp_path / "marks.jsonl").open("a") as file:
        file.write('{"verdict": "perhaps"}\n')
    marks.append(tmp_path, [mark("b")])
    with pytest.raises(CorruptShard, match="line 2 is not a mark"):
        marks.read(tmp_path)


def test_sigkill_between_and_during_appends_keeps_every_mark_that_was_confirmed(tmp_path: Path) -> None:
    script = (
        "import hashlib, sys\nfrom pathlib import Path\nfrom pipelines.run.marks import Mark, append\n"
        "for i in range(100000):\n"
        "    name = f'{sys.argv[2]}-{i:06d}' * 50\n"
        "    sha256 = hashlib.sha256(name.encode()).hexdigest()\n"
        "    append(Path(sys.argv[1]), [Mark(sha256=sha256, key=name, verdict='real', label='cat')])\n"
        "    print(i, flush=True)\n"
    )
    for turn in "abc":
        command, confirmed = [sys.executable, "-c", script, str(tmp_path), turn], -1
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                confirmed = int(line)
                if confirmed >= 20:
                    break
            child.send_signal(signal.SIGKILL)
            confirmed = max([confirmed, *(int(line) for line in child.stdout if line.endswith("\n"))])
        found = [found.key[:8] for found in marks.read(tmp_path).current.values() if found.key.startswith(turn)]
        assert confirmed >= 20
        assert found[: confirmed + 1] == [f"{turn}-{i:06d}" for i in range(confirmed + 1)]


def test_a_label_says_real_and_nothing_else_does() -> None:
    with pytest.raises(ValidationError, match="a label says that an image is real"):
        mark("a", "synthetic", "cat")


@pytest.mark.slow
def test_of_an_action_that_the_disk_refuses_nothing_is_kept(tmp_path: Path) -> None:
    marks.append(tmp_path, [mark("before")])
    script = (
        "import resource, sys; from pathlib import Path; from tests.pipelines.run.test_marks import mark, marks\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "marks.append(Path(sys.argv[1]), [mark(str(i)) for i in range(1000)])\n"
    )
    done = python("-c", script, str(tmp_path))
    assert "the last mark is not saved" in done.stderr
    assert verdicts(tmp_path) == {"before": ("real", None)}


def test_where_marks_cannot_be_written_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        marks.append(tmp_path / "nowhere", [mark("a")])
