"""Configuration and summary of `curate review`."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines import settings
from pipelines.storage.locations import AnyFolder, LocalFolder


class ReviewConfig(BaseModel):
    """What to review, and where the page is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run()
    order: Literal["suggested", "labels"] = Field(
        default="suggested",
        description="What to show first: images whose verdict is in doubt (suggested), or those whose label would "
        "teach the classifier most (labels).",
    )
    port: int = Field(default=8765, ge=0, le=65535, description="Local port of the page; 0 is any free one.")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a person's marks in the run amount to."""

    marks: str  # the file
    images: dict[
        str, int
    ]  # of the pool, by mark: real, synthetic, off-class, skip; images marked with a class count as real
    was_cut: bool  # whether a kill cut off the last mark of an earlier session
