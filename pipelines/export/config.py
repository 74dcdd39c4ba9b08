"""Configuration and summary of `curate export`."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines import settings
from pipelines.compute.engine import EngineName
from pipelines.storage.locations import AnyFolder, LocalFolder


class ExportConfig(BaseModel):
    """Which images to export, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: AnyFolder = Field(
        description="Folder to write, or a URL of an object store. An earlier export in it is replaced."
    )
    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run()
    where: str | None = Field(
        default=None,
        description="SQL condition on the columns of pool and scores and on scores from outside, such as "
        '"prob_synthetic < 0.1 and width >= 64". Images that do not meet it are dropped.',
    )
    keep: Literal["real", "synthetic", "all"] = Field(
        default="real", description="Images to keep, by the detector's verdict; all needs no scores."
    )
    min_confidence: float = Field(
        default=0.0, ge=0, le=1, description="Drop images whose pseudo-label is less probable than this, 0 to 1."
    )
    label_precision: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Label only images whose labels are promised to be right this often, such as 0.95: the limit of "
        "the confidence is tested on labeled images that the classifier has not seen.",
    )
    confidence_level: float = Field(
        default=0.9, gt=0, lt=1, description="Probability with which the promise of label_precision holds."
    )
    unlabeled: Literal["keep", "drop"] = Field(
        default="keep",
        description="With label_precision, keep the images below the limit, with -1 as their class, or drop them.",
    )
    drop_near_duplicates: bool = Field(
        default=False, description="Of each group of near-duplicates, keep only the best copy that other options allow."
    )
    turned: bool = settings.turned()
    cropped: bool = settings.cropped()
    semantic_duplicates: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Of images whose embeddings are closer than this (1 - cosine, 0 to 1), keep only the best copy: "
        "SemDeDup. Try 0.05, and look at dropped.parquet.",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="Folder, .tar or .parquet of held-out images, such as a test set: drop what is an exact or near "
        "copy of one. Can be given several times.",
    )
    radius: int = settings.radius()
    max_distance: float = settings.max_distance()
    per_class: int | None = Field(
        default=None, ge=1, description="Keep only this many images of each pseudo-label, the most confident ones."
    )
    format: Literal["webdataset", "parquet"] = Field(
        default="webdataset", description="Shards to write: tars, or parquet as Hugging Face datasets writes it."
    )
    shard_size: int = Field(default=1000, ge=1, description="Images in a shard.")
    jobs: int = settings.jobs()
    engine: EngineName = settings.engine()
    ray_address: str | None = settings.ray_address()


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What was exported; kept + dropped = images of the pool."""

    out: str
    pool: int  # images
    kept: int  # images
    dropped: dict[str, int]  # images by reason
    per_class: dict[str, int]  # kept images by pseudo-label; empty without classes
    shards: int
    num_bytes: int  # of the kept images
    captions: int  # kept images that have one
    left_out: dict[str, int]  # kept images by suffix of a file beside them that not all of them have
    warning: str  # what to know of the detector before deleting what was dropped; empty if nothing
    labeled: int  # of the kept images, those with a label
    labels: str  # how often their labels are right, or what is promised of them; empty without classes
