"""What `curate report` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from pipelines.report.confounds import Audit
from pipelines.storage.locations import AnyFolder, LocalFolder

if TYPE_CHECKING:
    pass


class ReportConfig(BaseModel):
    """What to report on, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    labeled: Path | None = None  # None: where training read it
    out: Path | None = None  # None: report.html in the run
    map: Literal["auto", "tsne", "pca"] = "auto"  # auto: t-SNE where openTSNE is installed
    device: Literal["auto", "cuda", "cpu"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the page says in a few numbers."""

    out: str
    num_bytes: int  # of the page
    seconds: float
    num_images: int
    num_rejected: int
    num_unscored: int  # images of shards without scores
    synthetic_share: float | None  # None without a detector
    audit: Audit | None  # None without scores
    next: str  # what to run for a fuller report, or to go on
