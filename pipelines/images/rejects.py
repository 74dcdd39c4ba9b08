"""Reasons why a record of the crawl is not in the pool: values that travel beside the images, never exceptions.

The reason of a single record is made where it is found: `images.check` (its bytes), `storage.tar` and `ingest.records`
(reading the source), `ingest.worker` (decoding; duplicates within a unit), `ingest.commit` (all other duplicates).
"""

from enum import StrEnum
from typing import NamedTuple, Self


class Reason(StrEnum):
    """The ways in which a record of the crawl fails to be an image for the pool, each with its `meaning`."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Make a member: the word to count by, and a phrase that explains it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    # The crawl did not deliver the image.
    MISSING = "missing", "listed in the crawl's own metadata, but not in its archive"
    INCOMPLETE_ARCHIVE = "incomplete_archive", "the archive is truncated or damaged here, and the rest cannot be read"
    UNREADABLE = "unreadable", "the file exists, but may not be opened"
    UNSAFE_NAME = "unsafe_name", "the name would leave its folder, or has control characters"
    NOT_A_FILE = "not_a_file", "a link, a device, a pipe or the like"
    # The crawl delivered something that the pool does not take.
    EMPTY = "empty", "zero bytes"
    NOT_AN_IMAGE = "not_an_image", "something else, such as an error page"
    UNSUPPORTED_FORMAT = "unsupported_format", "an image in a format that is not decoded"
    TRUNCATED = "truncated", "the end of the file is missing"
    CORRUPT = "corrupt", "does not decode"
    TOO_SMALL = "too_small", "a side is under the limit"
    TOO_MANY_PIXELS = "too_many_pixels", "more pixels than the limit"
    TOO_MANY_BYTES = "too_many_bytes", "more bytes than the limit"
    TOO_SLOW = "too_slow", "decoding takes longer than the limit, or never ends"
    CRASHED = "crashed", "decoding crashes, or takes more memory than there is"
    DUPLICATE = "duplicate", "the same bytes as an image that is already in the pool"

    @property
    def never_arrived(self) -> bool:
        """Whether the crawl failed to deliver the image, as opposed to delivering a bad one."""
        return self in (Reason.MISSING, Reason.INCOMPLETE_ARCHIVE, Reason.UNREADABLE)


class Reject(NamedTuple):
    """A rejected record: the reason to count by, the detail to read."""

    reason: Reason
    detail: str
