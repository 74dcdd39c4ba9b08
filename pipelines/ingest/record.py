"""A record of the crawl: one image with what belongs to it, or the reason why there is none."""

from collections.abc import Mapping
from typing import NamedTuple

from pipelines.images.rejects import Reject


class Record(NamedTuple):
    """One image of the crawl: its name in the source, its bytes or a Reject, and its sidecars by suffix."""

    member: str
    content: bytes | Reject
    sidecars: Mapping[str, bytes]
