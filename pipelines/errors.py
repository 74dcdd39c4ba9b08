"""The errors that a user can fix, and how the error of a library is quoted in one of them.

    CurateError             one sentence: what, where, what to do next; the command line exits with 1
      BadInput              an argument, a configuration value or a source cannot be used; it exits with 2
        Refused             a disk or a store refuses to read or write; the same command is right once that is mended
      MissingArtifact       an earlier stage has not run, or ran elsewhere
      CorruptShard          a shard, manifest or checkpoint differs from what was recorded about it
      Incompatible          two artifacts, or an artifact and a flag, do not belong together

A faulty image is none of these: it is a value, a row among the rejects (see `pipelines.images.rejects`).
Any other exception is a bug in curate.
"""

import re


class CurateError(Exception):
    """Base of all errors that the user can fix; `str(error)` is the sentence to show."""

    exit_code = 1


class BadInput(CurateError):
    """An argument, a configuration value or a source cannot be used."""

    exit_code = 2


class Refused(BadInput):
    """A disk or a store refuses to read or write: it is full, out of reach, or not ours."""

    exit_code = 1


class MissingArtifact(CurateError):
    """Something that an earlier stage should have written is missing."""


class CorruptShard(CurateError):
    """A file that curate wrote is truncated, altered or contradicts its neighbors."""


class Incompatible(CurateError):
    """Two artifacts, or an artifact and a flag, do not belong together."""


def first_line(error: BaseException) -> str:
    """First line of the message of an error, unchanged; the name of its type if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def why(error: BaseException) -> str:
    """What went wrong, for quoting in a message: the system's words for an OSError, otherwise the first line.

    The period at the end is dropped, because the quoting sentence has its own.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error).rstrip(".")


def what_is_wrong(error: CurateError) -> str:
    """The first sentence of an error of ours, without the period and without what to do next."""
    return re.split(r"; |\. (?=[A-Z])", str(error))[0].rstrip(".")
