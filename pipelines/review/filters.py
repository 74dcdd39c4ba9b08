"""What a person asks the gallery for: which images, and in what order."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.review import region, search

Order = Literal["suggested", "labels", "synthetic", "real", "threshold", "other_label", "other_verdict", "pool"]


class Filter(BaseModel):
    """Which images to show, and in what order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["any", "real", "unsure", "synthetic"] = "any"
    label: str | None = None
    marked: Literal["any", "no", "yes", "real", "synthetic", "off-class", "skip", "labeled"] = "any"
    text: str = Field(default="", max_length=search.MAX_TEXT)  # see `pipelines.review.search`
    region: str = Field(default="", max_length=region.MAX_TEXT)  # outline on the map: see `pipelines.review.region`
    low: float = Field(default=0.0, ge=0, le=1)  # of prob_synthetic
    high: float = Field(default=1.0, ge=0, le=1)
    order: Order = "suggested"
