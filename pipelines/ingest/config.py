"""What `curate ingest` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipelines.compute.engine import EngineName
from pipelines.compute.processes import usable_cores
from pipelines.images.check import Limits
from pipelines.storage.locations import AnyFolder
from pipelines.storage.tar import MAX_MEMBER_BYTES


class IngestConfig(BaseModel):
    """What to ingest, and what to accept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = Field(min_length=1)
    pool: AnyFolder = Path("pool")
    jobs: int = Field(default_factory=usable_cores, ge=1)
    engine: EngineName = "local"
    ray_address: str | None = None
    shard_size: int = Field(default=1000, ge=1)  # of sources that have no shards of their own: folders and parquet
    min_side: int = Field(default=16, ge=1)
    max_pixels: int = Field(default=89_478_485, ge=1)  # where Pillow warns of decompression bombs
    max_bytes: int = Field(default=1 << 28, ge=1, le=MAX_MEMBER_BYTES)
    max_seconds: float = Field(default=60, gt=0, allow_inf_nan=False)  # to decode one image, by the clock

    @property
    def limits(self) -> Limits:
        """What an image may measure."""
        return Limits(min_side=self.min_side, max_pixels=self.max_pixels, max_bytes=self.max_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What one ingest did; kept + rejected = read."""

    pool: str
    shards: int  # added
    skipped: int  # units that the pool held already
    read: int
    kept: int
    rejected: dict[str, int]  # by reason
    declared: dict[str, int]  # kept images that declare their origin, by what they say
    images: int  # in the pool now
    notes: tuple[str, ...]  # what was left aside
    seconds: float
