"""Configuration and summary of `curate verify`."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from pipelines import settings
from pipelines.storage.locations import AnyFolder, LocalFolder


class VerifyConfig(BaseModel):
    """What to verify."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run("Run to verify along with the pool, if it has scores.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something on the disk that disagrees with something else."""

    where: str
    what: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was read, and what was found."""

    num_shards: int
    num_images: int
    num_rejects: int
    num_scored: int  # shards with scores
    problems: tuple[Problem, ...]
