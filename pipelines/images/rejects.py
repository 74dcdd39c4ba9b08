"""Why an image of the crawl is not in the pool: a value that travels beside the images, never an exception."""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """One word for each way in which a record of the crawl can fail to be an image for the pool."""

    # what the crawl did not hand over
    MISSING = "missing"  # the crawl's own metadata promise it, the archive does not hold it
    INCOMPLETE_ARCHIVE = "incomplete_archive"  # cut or damaged here; what follows cannot be read
    UNREADABLE = "unreadable"  # the file is there, but may not be opened
    UNSAFE_NAME = "unsafe_name"  # absolute, with `..` or with control characters
    NOT_A_FILE = "not_a_file"  # a link, a device, a pipe
    # what it handed over
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"  # an image, but of a format that we do not decode
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_SMALL = "too_small"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_SLOW = "too_slow"  # a decoder that takes too long, or never comes back
    CRASHED = "crashed"  # a decoder that ends its process, or takes more memory than there is
    DUPLICATE = "duplicate"  # the same bytes as an image that is already in the pool

    @property
    def never_arrived(self) -> bool:
        """Whether the crawl failed to hand the image over, as opposed to handing over a bad one."""
        return self in (Reason.MISSING, Reason.INCOMPLETE_ARCHIVE, Reason.UNREADABLE)


class Reject(NamedTuple):
    """A rejected record: the reason to count by, the detail to read."""

    reason: Reason
    detail: str
