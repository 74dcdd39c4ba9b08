"""Configuration and summary of `curate ingest`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from pipelines import settings
from pipelines.compute.engine import EngineName
from pipelines.storage.locations import AnyFolder
from pipelines.storage.tar import MAX_MEMBER_BYTES

if TYPE_CHECKING:
    from pipelines.images.check import Limits


class IngestConfig(BaseModel):
    """What to ingest, and what to accept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = Field(
        min_length=1,
        description="Images to ingest: folders, .tar or .parquet files, brace patterns "
        '("crawl/{00000..00099}.tar"), @LIST files or URLs.',
    )
    pool: AnyFolder = settings.pool()
    jobs: int = settings.jobs()
    engine: EngineName = settings.engine()
    ray_address: str | None = settings.ray_address()
    shard_size: int = Field(
        default=1000, ge=1, description="Images in a shard, for folders and parquet files, which have no shards."
    )
    image_column: str | None = Field(
        default=None, description="Column of a parquet file that holds the images, if it has an unusual name."
    )
    caption_column: str | None = Field(
        default=None, description="Field of the crawl's JSON or parquet that is the caption, if it has an unusual name."
    )
    min_side: int = Field(default=16, ge=1, description="Reject images with a side shorter than this, in pixels.")
    max_pixels: int = Field(
        default=89_478_485,  # from here on, Pillow warns of decompression bombs
        ge=1,
        description="Reject images with more pixels (width x height) than this.",
    )
    max_bytes: int = Field(
        default=1 << 28, ge=1, le=MAX_MEMBER_BYTES, description="Reject image files larger than this, in bytes."
    )
    max_seconds: float = Field(
        default=60,
        gt=0,
        allow_inf_nan=False,
        description="Reject images that take longer than this to decode, in seconds of wall clock.",
    )

    @property
    def limits(self) -> "Limits":
        """Limits that an image must keep."""
        from pipelines.images.check import Limits  # here, because a configuration needs no heavy library

        return Limits(min_side=self.min_side, max_pixels=self.max_pixels, max_bytes=self.max_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What one ingest did; kept + rejected = read."""

    pool: str
    shards: int  # added by this ingest
    skipped: int  # units that were in the pool before
    again: int  # images that were read once more and are in the pool, from this source or a copy of it; not in `read`
    read: int  # images
    kept: int  # images
    rejected: dict[str, int]  # images by reason
    declared: dict[
        str, int
    ]  # kept images that declare their origin, by what they declare, and those with an unread C2PA manifest
    images: int  # in the pool now
    notes: tuple[str, ...]  # what was skipped, and why
    seconds: float
