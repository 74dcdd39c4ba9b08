"""Configuration and summary of `curate report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines import settings
from pipelines.distribution import NAME
from pipelines.storage.locations import AnyFolder, LocalFolder

if TYPE_CHECKING:
    from pipelines.report.confounds import Audit


class ReportConfig(BaseModel):
    """What to report on, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run()
    labeled: Path | None = Field(
        default=None, description="Labeled images, if they are no longer where training read them."
    )
    against: LocalFolder | None = Field(
        default=None, description="Earlier run on the same pool, to compare the verdicts with."
    )
    out: Path | None = Field(default=None, description="HTML file to write; without it, report.html in the run.")
    map: Literal["auto", "tsne", "pca"] = Field(
        default="auto",
        description=f"Layout of the embeddings. tsne needs {NAME}[viz]; auto is tsne if that is installed, else pca.",
    )
    device: Literal["auto", "cuda", "cpu"] = settings.device()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The page in a few numbers."""

    out: str
    num_bytes: int  # of the page
    seconds: float
    num_images: int
    num_rejected: int
    num_unscored: int  # images of shards without scores
    synthetic_share: float | None  # share of the images called synthetic; this and the next: None without a detector
    unsure_share: float | None
    num_changed: int | None  # images with another verdict than by the earlier run; None without one
    audit: "Audit | None"  # None without scores
    next: str  # command to run next: for a fuller report, or the next step
