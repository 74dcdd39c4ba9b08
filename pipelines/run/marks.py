"""Marks: a person's verdicts and labels of images, in the append-only file run/marks.jsonl.

    {"sha256": "5fe..", "key": "000012345", "verdict": "real", "label": "cat", "action": "9f2c", "time": ..}
    {"undo": "9f2c", "time": "2026-11-22T19:48:15Z"}

A line either is a mark or undoes all marks of one action, which may have marked many images. The current marks follow
from all lines: each image has the last mark that was not undone. Images are identified by their SHA-256, so marks
survive a new ingest that gives the images other keys; the key is there for people to read.

An append is on the disk before it returns. A kill can cut off only the last line: reading skips it, and the next append
repairs the file.
"""

import fcntl
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipelines.errors import BadInput, CorruptShard
from pipelines.storage.atomic import CANNOT_LOCK, sync

FILE = "marks.jsonl"

# off-class: real, and of none of the classes; skip: the person looked at it and could not tell
Verdict = Literal["real", "synthetic", "off-class", "skip"]
# What a mark says to the detector, as one of `verdicts.VERDICTS`; of a skipped image nothing.
OF_DETECTOR: Mapping[str, str] = {"real": "real", "off-class": "real", "synthetic": "synthetic"}


class Judgment(BaseModel):
    """What a person says about an image; a label says that it is real and of this class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    label: str | None = None

    @model_validator(mode="after")
    def _labeled_is_real(self) -> Self:
        if self.label is not None and self.verdict != "real":
            raise ValueError(f"a label says that an image is real, but the verdict is {self.verdict}")
        return self


class Mark(Judgment):
    """A judgment of one image."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    key: str  # when it was marked


class _MarkLine(Mark):
    action: str
    time: datetime


class _UndoLine(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    undo: str  # the action
    time: datetime


_LINE: TypeAdapter[_MarkLine | _UndoLine] = TypeAdapter(_MarkLine | _UndoLine)


@dataclass(frozen=True)
class Marks:
    """The current marks of a run."""

    current: Mapping[str, Mark] = field(default_factory=dict)  # by sha256
    last: tuple[str, ...] = ()  # sha256 of the images of the latest action that was not undone
    last_action: str | None = None
    cut: bool = False  # whether a kill cut off the last line


def path(run: Path) -> Path:
    """The file with the marks of a run."""
    return run / FILE


def read(run: Path) -> Marks:
    """Read the current marks of a run, which may have none; CorruptShard names a line that is not a mark."""
    try:
        return _fold(path(run), path(run).read_bytes())
    except FileNotFoundError:
        return Marks()


def append(run: Path, marks: Iterable[Mark]) -> int:
    """Append marks as one action; returns the number of bytes written, which are on the disk by then.

    Raises BadInput if they cannot be written.
    """
    action, now = secrets.token_hex(4), _now()
    return _append(path(run), [_MarkLine(**mark.model_dump(), action=action, time=now) for mark in marks])


def undo(run: Path) -> tuple[str, ...]:
    """Undo the latest action that was not undone; returns the sha256 of its images, none if there is no action."""
    before = read(run)
    if before.last_action is not None:
        _append(path(run), [_UndoLine(undo=before.last_action, time=_now())])
    return before.last


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _fold(file: Path, content: bytes) -> Marks:
    *lines, rest = content.split(b"\n")
    actions: dict[str, list[_MarkLine]] = {}
    whole = _complete(rest)
    for number, text in enumerate([*lines, rest] if whole else lines, 1):
        try:
            line = _LINE.validate_json(text)
        except ValidationError:
            raise CorruptShard(f"{file}: line {number} is not a mark. Correct or remove that line.") from None
        if isinstance(line, _UndoLine):
            actions.pop(line.undo, None)
        else:
            actions.setdefault(line.action, []).append(line)
    current = {line.sha256: line for marks in actions.values() for line in marks}
    latest = next(reversed(actions), None)
    last = tuple(line.sha256 for line in actions[latest]) if latest is not None else ()
    return Marks(current, last, latest, cut=bool(rest) and not whole)


def _complete(text: bytes) -> bool:
    """Whether a last line that lacks its line break is complete otherwise."""
    try:
        return bool(text and _LINE.validate_json(text))
    except ValidationError:
        return False


def _append(file: Path, lines: Iterable[BaseModel]) -> int:
    content = b"".join(line.model_dump_json(exclude_none=True).encode() + b"\n" for line in lines)
    try:
        is_new = not file.exists()
        with file.open("a+b", buffering=0) as log:
            _lock(log.fileno())
            _repair(log.fileno())
            before = os.fstat(log.fileno()).st_size
            try:
                _write(log.fileno(), content)
                os.fsync(log.fileno())
            except OSError:
                os.ftruncate(log.fileno(), before)  # all marks of an action or none
                raise
        if is_new:
            sync(file.parent)
    except OSError as error:
        raise BadInput(f"{file} cannot be written ({error.strerror}); the last mark is not saved.") from None
    return len(content)


def _lock(log: int) -> None:
    """Make other pages on the same run wait."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise


def _write(log: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(log, left) :]


def _repair(log: int) -> None:
    """Complete the last line if only its line break is missing, and remove it if a kill cut it off."""
    size = os.fstat(log).st_size
    if not size or os.pread(log, 1, size - 1) == b"\n":
        return
    content = os.pread(log, size, 0)
    rest = content[content.rfind(b"\n") + 1 :]
    if _complete(rest):
        os.write(log, b"\n")
    else:
        os.ftruncate(log, size - len(rest))
