"""What is said on the way and at the end: warnings when they come, and JSON that any reader takes."""

import json
import math
import os
import shlex
from pathlib import Path

import pytest

from curate import console
from pipelines.progress import Tick
from pipelines.storage.json_text import to_json


def test_a_warning_is_said_when_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("train") as on_tick:
        on_tick(Tick(done=1, total=9, unit="steps"))
        on_tick(Tick(done=2, total=9, unit="steps", note="the pool is [bold]empty[/bold]"))
        said = capsys.readouterr()
        assert said.err == "Warning: the pool is [bold]empty[/bold]\n"  # text, never markup
        assert not said.out
        on_tick(Tick(done=3, total=9, unit="steps"))
    assert not capsys.readouterr().err


def test_a_command_can_be_pasted_whatever_its_values_are() -> None:
    words = ["curate", "export", "--drop", "--out", "b c/it's", "--min-confidence", "0.8", "--pool", "$HOME/{0..1}"]
    said = console.command("export", "--drop", out="b c/it's", min_confidence=0.8, pool="$HOME/{0..1}")
    assert shlex.split(said) == words
    assert console.command("inspect", "KEY", out="clean/") == "curate inspect KEY --out clean/"


def test_sentences_are_lines_below_a_title_and_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("By the truth:", ("curate found [bold]70[/bold] of 100. " * 5, "It lost 0."))
    title, first, second = capsys.readouterr().out.splitlines()
    assert (title, second) == ("By the truth:", "  It lost 0.")
    assert first.count("[bold]70[/bold]") == 5


def test_a_condition_is_shown_in_double_quotes() -> None:
    said = console.command("export", where="verdict = 'real'")
    assert said == """curate export --where "verdict = 'real'\""""
    assert shlex.split(said)[-1] == "verdict = 'real'"


def test_json_has_null_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    console.as_json({"a": math.nan, "rows": ({"b": -math.inf, "c": 1.5}, [math.nan, "é"])})

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=refuse) == {"a": None, "rows": [{"b": None, "c": 1.5}, [None, "é"]]}
    assert "é" in text


def test_json_of_a_name_that_is_not_utf8_can_be_written_and_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"L\xf6we/\xe9.tar")
    (tmp_path / "file.json").write_text(to_json({"source": name}), encoding="utf-8")
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == {"source": name}


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (125, "2 min"), (8000, "2 h 13 min")])
def test_a_time_is_said_in_words(seconds: float, words: str) -> None:
    assert console.duration(seconds) == words


def test_progress_says_how_much_time_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with console.progress("train") as on_tick:
        for done in (0, 20, 40):
            on_tick(Tick(done=done, total=200, unit="steps"))
            now += 11
        for done in (1, 11):  # a second training begins anew, and so does its pace
            on_tick(Tick(done=done, total=200, unit="steps"))
            now += 11
        on_tick(Tick(done=3, total=None, unit="images"))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "train: 20 of 200 steps, 1.8/s, 99 s left",
        "train: 40 of 200 steps, 1.8/s, 88 s left",
        "train: 1 of 200 steps",
        "train: 11 of 200 steps, 0.9/s, 3 min left",
        "train: 3 images",
    ]
