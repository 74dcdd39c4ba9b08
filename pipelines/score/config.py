"""What `curate score` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.compute.engine import EngineName
from pipelines.errors import BadInput
from pipelines.run.verdicts import Thresholds
from pipelines.storage.locations import AnyFolder, LocalFolder


class ScoreConfig(BaseModel):
    """What to score, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    truth: Path | None = None  # reported against
    # Share of real images that may be called synthetic; None cuts where the estimated share of the pool lies above.
    max_false_positive_rate: float | None = Field(default=None, gt=0, lt=1)
    batch_size: int = Field(default=256, ge=1)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    engine: EngineName = "local"
    ray_address: str | None = None
    shard_index: int = Field(default=0, ge=0)  # of the calls that share the pool, and
    num_shards: int = Field(default=1, ge=1)  # how many those are

    @model_validator(mode="after")
    def _is_one_of(self) -> Self:
        if self.shard_index >= self.num_shards:
            raise BadInput(
                f"--shard-index {self.shard_index}: of {self.num_shards} calls the last has {self.num_shards - 1}; "
                "they count from 0."
            )
        if self.truth and self.num_shards > 1:
            raise BadInput("--truth: is compared with the whole pool; give it to `curate score` after the last shard.")
        return self


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What scoring came to, of the shards that it was asked for."""

    num_images: int
    num_shards: int
    num_scored_before: int  # shards that were skipped
    seconds: float
    called_share: float | None  # called synthetic; this and the next two are None without a detector
    verdicts: dict[str, int] | None  # images by verdict
    thresholds: Thresholds | None
    estimated_share: float | None  # of the pool that was trained on
    estimated_interval: tuple[float, float] | None
    mean_confidence: float
    pseudo_labels: dict[str, int]  # images by class
    truth: dict[str, float] | None
