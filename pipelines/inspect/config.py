"""Configurations of `curate inspect`: of looking images up, of disagreement and of near-duplicates."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines import settings
from pipelines.storage.locations import AnyFolder, LocalFolder


def _neighbors() -> Any:
    return Field(default=10, ge=1, le=1000, description="Nearest neighbors of each image.")


def _top() -> Any:
    return Field(default=50, ge=1, le=1000, description="Images or groups to list.")


def _html() -> Any:
    return Field(default=None, description="Contact sheet to write, one HTML file.")


class InspectConfig(BaseModel):
    """Which images to look up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: tuple[str, ...] = Field(
        min_length=1, description="Keys of the pool, image files, folders of images, or names of images in the crawl."
    )
    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run()
    neighbors: int = _neighbors()
    html: Path | None = _html()


class DisagreementConfig(BaseModel):
    """How many neighbors to compare with, and how many images to list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run()
    neighbors: int = _neighbors()
    top: int = _top()
    html: Path | None = _html()


class DuplicatesConfig(BaseModel):
    """What counts as a near-duplicate, and how many groups to list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run()
    radius: int = settings.radius()
    max_distance: float = settings.max_distance()
    turned: bool = settings.turned()
    cropped: bool = settings.cropped()
    top: int = _top()
    html: Path | None = _html()
