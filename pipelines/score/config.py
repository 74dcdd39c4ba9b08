"""Configuration and summary of `curate score`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines import settings
from pipelines.compute.engine import EngineName
from pipelines.errors import BadInput
from pipelines.storage.locations import AnyFolder, LocalFolder

if TYPE_CHECKING:
    from pipelines.run.evaluation import DeclaredCheck
    from pipelines.run.labels import Labels
    from pipelines.run.quality import Quality
    from pipelines.run.verdicts import Thresholds


class ScoreConfig(BaseModel):
    """What to score, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run("Folder of the training run; scores are written into it.")
    truth: Path | None = Field(default=None, description="Known truth to report against.")
    scores: tuple[str, ...] = settings.scores()
    max_false_positive_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Largest acceptable share of real images called synthetic, between 0 and 1; calibrated on held-out "
        "labeled images. Without it, 0.05 where enough of them are held out.",
    )
    batch_size: int = Field(default=256, ge=1, description="Images that are scored at once.")
    device: Literal["auto", "cuda", "cpu"] = settings.device()
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description="Precision of a classifier that was trained end to end; auto: that of the scores that the run has, "
        "else bf16 where the device is faster in it. The detector computes in fp32.",
    )
    engine: EngineName = settings.engine()
    ray_address: str | None = settings.ray_address()
    shard_index: int = Field(
        default=0,
        ge=0,
        description="Index of this call, from 0, among the calls that share the pool, as in a Slurm array; it scores "
        "every num_shards-th shard from this one on.",
    )
    num_shards: int = Field(default=1, ge=1, description="Number of calls that share the pool.")

    @model_validator(mode="after")
    def _is_one_of(self) -> Self:
        if self.shard_index >= self.num_shards:
            raise BadInput(
                f"--shard-index {self.shard_index}: the last of {self.num_shards} calls has index "
                f"{self.num_shards - 1}, because they count from 0."
            )
        if self.truth and self.num_shards > 1:
            raise BadInput(
                "--truth: is compared with the whole pool. Give it to a last `curate score` without --shard-index."
            )
        if self.scores and self.num_shards > 1:
            raise BadInput(
                "--scores: belong to the whole pool. Give them to a last `curate score` without --shard-index."
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of scoring, for the shards of this call."""

    folder: str  # the run, or a folder in it for a pool that it was not trained on
    num_images: int
    num_shards: int
    num_scored_before: int  # shards that were skipped, because they had scores
    seconds: float
    precision: str  # of the classifier's network
    called_share: (
        float | None
    )  # of the images, with the verdict synthetic; this and the next two: None without detector
    verdicts: dict[str, int] | None  # images by the detector's verdict, whatever a person has marked
    thresholds: "Thresholds | None"
    estimated_share: float | None  # of the pool that was trained on, by which the threshold was set
    quality: "Quality | None"  # of the detector; None on a pool that was not trained on
    labels: "Labels | None"  # how often they are right; None without classes, or for a part of a pool
    domains: (
        list[dict[str, Any]] | None
    )  # rows of run/domains.parquet; None without a detector, or for a part of a pool
    mean_confidence: float | None  # None without classes
    pseudo_labels: dict[str, int]  # images by class; empty without classes
    truth: dict[str, float] | None
    declared: "DeclaredCheck | None"  # None without a detector, and where no image declares its origin
    outside: dict[str, int]  # images that have a value, by name of the scores from outside
