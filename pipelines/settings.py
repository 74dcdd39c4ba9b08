"""Settings that several stages share: the default and the description of each stand here alone.

Each function makes a field, for a configuration that has this setting. Pydantic keeps what it learns about a field in
the field itself, so two configurations can't share one.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines.compute.processes import usable_cores

RADIUS = 4  # of 64 bits: re-encoding and resizing change up to 4; from 6 on, different images collide
MAX_DISTANCE = 0.1  # 1 - cosine of the embeddings
MAX_RADIUS = 8


def pool() -> Any:
    """Pool that a stage reads or writes."""
    return Field(default=Path("pool"), description="Ingested pool: a folder, or a URL of an object store.")


def run(description: str = "Folder of the run that scored the pool.") -> Any:
    """Run that a stage reads or writes."""
    return Field(default=Path("run"), description=description)


def scores() -> Any:
    """Scores from outside, as NAME=FILE."""
    return Field(
        default=(),
        description="Scores by another model, as NAME=FILE: a parquet or CSV with a column key or sha256 and one of "
        "values. They become the column NAME of --where, report and review. Can be given several times.",
    )


def device() -> Any:
    """Device of the networks: auto, cuda or cpu."""
    return Field(default="auto", description="Device of the networks; auto is the GPU where there is one.")


def engine() -> Any:
    """Where the tasks of a stage run: local or ray."""
    return Field(default="local", description="Run in processes of this machine, or on a Ray cluster.")


def ray_address() -> Any:
    """Ray cluster to connect to."""
    return Field(
        default=None,
        description="Address of a running Ray cluster. Without one, $RAY_ADDRESS counts, else a cluster starts here.",
    )


def jobs() -> Any:
    """Processes that work side by side on this machine."""
    return Field(
        default_factory=usable_cores, ge=1, description="Processes that run in parallel; without it, one per CPU core."
    )


def radius() -> Any:
    """Distance of the perceptual hashes of near-duplicates."""
    return Field(
        default=RADIUS,
        ge=0,
        le=MAX_RADIUS,
        description="Near-duplicates differ in at most this many of the 64 bits of their perceptual hashes.",
    )


def turned() -> Any:
    """Whether mirrored and rotated copies are near-duplicates."""
    return Field(default=False, description="Count mirrored and rotated copies as near-duplicates, too.")


def cropped() -> Any:
    """Whether crops are near-duplicates."""
    return Field(
        default=False,
        description="Count crops that lack up to 5 % of a side as near-duplicates, too. Every image is decoded for it.",
    )


def max_distance() -> Any:
    """Distance of the embeddings of near-duplicates."""
    return Field(
        default=MAX_DISTANCE,
        ge=0,
        le=2,
        description="Near-duplicates are at most this far apart: 1 - cosine of their embeddings, 0 to 2.",
    )
