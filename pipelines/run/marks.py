"""Marks: what a person said of images, in run/marks.jsonl; it is only ever appended to.

    {"sha256": "5fe..", "key": "000012345", "verdict": "real", "label": "cat", "action": "9f2c", "time": ..}
    {"undo": "9f2c", "time": "2026-11-22T19:48:15Z"}

A line is a mark, or takes back all marks of one action (many images may be marked at once). What holds now is a fold
over the lines: of each image the last mark that was not taken back. Images are known by their sha256, so that marks
outlive an ingest that gives them other keys; the key is there for people.

An append is on the disk before it returns. A kill can cut the last line at most: it is left out when read, and mended
by the next append.
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

Verdict = Literal["real", "synthetic", "skip"]  # skip: looked at, and nothing to say


class Judgment(BaseModel):
    """What a person says of an image; a label says that it is real and of this class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    label: str | None = None

    @model_validator(mode="after")
    def _labeled_is_real(self) -> Self:
        if self.label is not None and self.verdict != "real":
            raise ValueError(f"a label says that an image is real, and the verdict is {self.verdict}")
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

    undo: str  # the action taken back
    time: datetime


_LINE: TypeAdapter[_MarkLine | _UndoLine] = TypeAdapter(_MarkLine | _UndoLine)


@dataclass(frozen=True)
class Marks:
    """What holds now."""

    current: Mapping[str, Mark] = field(default_factory=dict)  # by sha256
    last: tuple[str, ...] = ()  # sha256 of the images of the latest action that was not taken back
    last_action: str | None = None
    cut: bool = False  # whether the last line was cut by a kill


def path(run: Path) -> Path:
    """Where the marks of a run are."""
    return run / FILE


def read(run: Path) -> Marks:
    """Fold the marks of a run, none where it has none; CorruptShard names a line that is no mark."""
    try:
        return _fold(path(run), path(run).read_bytes())
    except FileNotFoundError:
        return Marks()


def append(run: Path, marks: Iterable[Mark]) -> int:
    """Put marks on record as one action, on the disk when this returns; returns the number of bytes.

    Raises BadInput where they cannot be written.
    """
    action, now = secrets.token_hex(4), _now()
    return _append(path(run), [_MarkLine(**mark.model_dump(), action=action, time=now) for mark in marks])


def undo(run: Path) -> tuple[str, ...]:
    """Take back the latest action that still holds; returns the sha256 of its images, none where there is none."""
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
            raise CorruptShard(f"{file}: line {number} is not a mark; mend or remove that line.") from None
        if isinstance(line, _UndoLine):
            actions.pop(line.undo, None)
        else:
            actions.setdefault(line.action, []).append(line)
    current = {line.sha256: line for marks in actions.values() for line in marks}
    latest = next(reversed(actions), None)
    last = tuple(line.sha256 for line in actions[latest]) if latest is not None else ()
    return Marks(current, last, latest, cut=bool(rest) and not whole)


def _complete(text: bytes) -> bool:
    """Whether a last line without its line break is whole all the same."""
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
            _mend(log.fileno())
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
        raise BadInput(f"{file}: cannot be written ({error.strerror}); the last mark is not kept.") from None
    return len(content)


def _lock(log: int) -> None:
    """Have another page on the same run wait."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise


def _write(log: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(log, left) :]


def _mend(log: int) -> None:
    """Give a last line its line break where only that is missing, and remove it where a kill cut it."""
    size = os.fstat(log).st_size
    if not size or os.pread(log, 1, size - 1) == b"\n":
        return
    content = os.pread(log, size, 0)
    rest = content[content.rfind(b"\n") + 1 :]
    if _complete(rest):
        os.write(log, b"\n")
    else:
        os.ftruncate(log, size - len(rest))
