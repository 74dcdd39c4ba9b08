"""`curate report` as a person types it."""

import json
from pathlib import Path

import pytest

from tests.warm import curate

pytestmark = pytest.mark.slow


def test_a_page_is_written_beside_the_run_and_its_findings_shown(scored: Path) -> None:
    done = curate("report", "--map", "pca", "--device", "cpu", cwd=scored)
    assert done.returncode == 0, done.stderr
    assert "Report in run/report.html" in done.stdout and "bytes per pixel" in done.stdout
    assert "Next: open run/report.html in a browser; then curate inspect KEY" in done.stderr
    assert (scored / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_json_is_one_object_on_stdout(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = curate("report", "--map", "pca", "--run", "nowhere", "--out", str(out), "--json", cwd=scored)
    summary = json.loads(done.stdout)
    assert summary["audit"] is None and summary["out"] == str(out)
    assert summary["num_bytes"] == out.stat().st_size and "curate train" in summary["next"]
    assert not (scored / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--pool", "nowhere"), 1, "run `curate ingest"),
        (("--labeled", "nowhere"), 2, "nowhere does not exist"),
        (("--map", "globe"), 2, "--map globe"),
    ],
)
def test_mistakes_are_one_sentence(scored: Path, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = curate("report", *arguments, cwd=scored)
    assert done.returncode == code
    assert sentence in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_help_names_every_option(tmp_path: Path) -> None:
    text = curate("report", "--help", cwd=tmp_path).stdout
    for name in ("pool", "run", "labeled", "out", "map", "device", "config", "json"):
        assert f"--{name}" in text
