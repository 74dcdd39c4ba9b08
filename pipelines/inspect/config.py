"""What `curate inspect` is asked for, and what it came to."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipelines.run.duplicates import MAX_DISTANCE, MAX_RADIUS, RADIUS
from pipelines.storage.locations import AnyFolder, LocalFolder


class DuplicatesConfig(BaseModel):
    """What counts as a near-duplicate, and how many groups to list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    radius: int = Field(default=RADIUS, ge=0, le=MAX_RADIUS)  # bits
    max_distance: float = Field(default=MAX_DISTANCE, ge=0, le=2)
    top: int = Field(default=50, ge=1, le=1000)  # the largest groups
    html: Path | None = None


class DisagreementConfig(BaseModel):
    """What to compare, and how many to list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    neighbors: int = Field(default=10, ge=1, le=1000)
    top: int = Field(default=50, ge=1, le=1000)
    html: Path | None = None


class InspectConfig(BaseModel):
    """What to look at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: tuple[str, ...] = Field(min_length=1)
    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    neighbors: int = Field(default=10, ge=1, le=1000)
    html: Path | None = None
