"""Errors of libraries are quoted in one line."""

import errno

from pipelines.errors import first_line, why


def test_the_first_line_is_unchanged_and_never_empty() -> None:
    assert first_line(ValueError("Cut short.\nSecond line.")) == "Cut short."
    assert first_line(ValueError()) == first_line(ValueError("")) == "ValueError"


def test_why_is_the_systems_words_or_the_first_line_without_its_period() -> None:
    assert why(OSError(errno.ENOSPC, "No space left on device", "/a/file")) == "No space left on device"
    assert why(OSError("Corrupt data.\nSecond line.")) == "Corrupt data"
    assert why(KeyError()) == "KeyError"
