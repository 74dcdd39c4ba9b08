"""What `curate review` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipelines.storage.locations import AnyFolder, LocalFolder


class ReviewConfig(BaseModel):
    """What to look at, and where the page is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    port: int = Field(default=8765, ge=0, le=65535)  # 0: any free one


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a person left in the run."""

    marks: str  # the file
    images: dict[str, int]  # of the pool, by mark: real, synthetic, skip; those labeled are among the real ones
    was_cut: bool  # whether a kill had cut the last mark of an earlier sitting
