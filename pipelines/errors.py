"""Everything that can go wrong and that the user can mend.

    CurateError             one sentence: what, where, what to do next; the command line exits with 1
      BadInput              an argument, a configuration or a source that cannot be used as it is
      MissingArtifact       an earlier stage has not been run, or was run elsewhere
      CorruptShard          a shard, manifest or checkpoint that is not what its mark says
      Incompatible          two artifacts, or an artifact and a flag, that do not belong together

A faulty image is none of these: it is a value, a row among the rejects (see `pipelines.images.rejects`).
Anything else that is raised is a bug of ours.
"""


class CurateError(Exception):
    """Base of all errors that the user can mend; `str(error)` is the sentence to show."""


class BadInput(CurateError):
    """An argument, a configuration value or a source that cannot be used as it is."""


class MissingArtifact(CurateError):
    """Something that an earlier stage should have left is not there."""


class CorruptShard(CurateError):
    """A file of ours that is cut, altered or contradicts its neighbors."""


class Incompatible(CurateError):
    """Two artifacts, or an artifact and a flag, that do not belong together."""
