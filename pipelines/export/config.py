"""What `curate export` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.compute.engine import EngineName
from pipelines.compute.processes import usable_cores
from pipelines.run.duplicates import MAX_DISTANCE, MAX_RADIUS, RADIUS
from pipelines.storage.locations import AnyFolder, LocalFolder


class ExportConfig(BaseModel):
    """Which images to export, and to where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: AnyFolder
    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    where: str | None = None  # SQL condition on the columns of pool and scores
    keep: Literal["real", "synthetic", "all"] = "real"
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    drop_near_duplicates: bool = False  # of the images that may be kept, the best copy of each group stays
    radius: int = Field(default=RADIUS, ge=0, le=MAX_RADIUS)  # this and the next: what a near-duplicate is, as
    max_distance: float = Field(default=MAX_DISTANCE, ge=0, le=2)  # in pipelines.inspect.near_duplicates
    per_class: int | None = Field(default=None, ge=1)  # the most confident of each pseudo-label
    shard_size: int = Field(default=1000, ge=1)
    jobs: int = Field(default_factory=usable_cores, ge=1)
    engine: EngineName = "local"
    ray_address: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What was exported; kept + dropped = images of the pool."""

    out: str
    pool: int
    kept: int
    dropped: dict[str, int]  # by reason
    per_class: dict[str, int]  # kept images, by pseudo-label
    shards: int
    num_bytes: int  # of the images
