"""What is said on the way and at the end: warnings when they come, and JSON that any reader takes."""

import json
import math

import pytest

from curate import console
from pipelines.progress import Tick


def test_a_warning_is_said_when_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("train") as on_tick:
        on_tick(Tick(done=1, total=9, unit="steps"))
        on_tick(Tick(done=2, total=9, unit="steps", note="the pool is [bold]empty[/bold]"))
        said = capsys.readouterr()
        assert said.err == "Warning: the pool is [bold]empty[/bold]\n"  # text, never markup
        assert not said.out
        on_tick(Tick(done=3, total=9, unit="steps"))
    assert not capsys.readouterr().err


def test_json_has_null_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    console.as_json({"a": math.nan, "rows": ({"b": -math.inf, "c": 1.5}, [math.nan, "é"])})

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=refuse) == {"a": None, "rows": [{"b": None, "c": 1.5}, [None, "é"]]}
    assert "é" in text
