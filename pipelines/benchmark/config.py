"""What `curate benchmark` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pipelines.benchmark import mixtures
from pipelines.benchmark.methods import ABLATION, METHODS
from pipelines.train import TrainConfig


class BenchmarkConfig(BaseModel):
    """Sources, matrix and settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    real: Path
    synthetic: Path
    test: Path  # real images
    photographs: Path | None = None  # real and larger: are they called synthetic for how they were scaled?
    out: Path = Path("benchmark")
    methods: tuple[str, ...] = ("supervised", "fixmatch-real", "fixmatch", "rsmatch", "rsmatch-oracle")
    contaminations: tuple[str, ...] = ("balanced",)  # NAME or NAME:SHARE of the synthetic images that are so
    alphas: tuple[NonNegativeFloat, ...] = (0.5,)  # num_synthetic = alpha * num_real
    labels: tuple[PositiveInt, ...] = (250,)  # labeled images in all
    seeds: int = Field(default=3, ge=1)
    classes: tuple[str, ...] | None = None  # of the task; None: all, or what off-class contamination leaves it
    num_real: tuple[PositiveInt, ...] = (20_000,)  # unlabeled real images in all
    num_test: int = Field(default=10_000, ge=1)
    size: int | None = Field(default=None, ge=8)  # pixels; None leaves the files as they are (see datasets.matched)
    jobs: int = Field(default=1, ge=1)  # runs side by side
    start: dict[str, Any] | None = None  # of pipelines.train.TrainConfig: the network that all methods start from
    learning_rates: tuple[PositiveFloat, ...] = (0.03,)
    train: dict[str, Any] = Field(default_factory=dict)  # of pipelines.train.TrainConfig; the rest of it

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in METHODS]:
            raise ValueError(f"unknown method {unknown[0]!r}; known: ablation, {', '.join(METHODS)}")
        return names

    @field_validator("methods", mode="before")
    @classmethod
    def _spelled_out(cls, names: Any) -> Any:
        """`ablation` stands for the paper's method and one of our additions after the other."""
        if not isinstance(names, list | tuple):
            return names
        return tuple(each for name in names for each in (ABLATION if name == "ablation" else (name,)))

    @field_validator("alphas")
    @classmethod
    def _something_to_find(cls, alphas: tuple[float, ...], values: ValidationInfo) -> tuple[float, ...]:
        if 0 in alphas and "rsmatch-nnpu" in values.data.get("methods", ()):
            raise ValueError("of a clean pool nnPU can learn nothing; leave out 0, or the method rsmatch-nnpu")
        return alphas

    @field_validator("start", "train")
    @classmethod
    def _known_settings(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            TrainConfig(**({"labeled": Path("seed")} | (values or {})))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return values

    @field_validator("train")
    @classmethod
    def _without_a_rate(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "learning_rate" in values.get("recipe", {}):
            raise ValueError("recipe.learning_rate is part of the matrix here. Give it as learning_rates = [...].")
        return values

    @field_validator("contaminations")
    @classmethod
    def _known_contaminations(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        for spec in specs:
            mixtures.Contamination.parse(spec)
        return specs


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the matrix came to."""

    num_runs: int
    num_on_record: int  # that were skipped
    seconds: float
    table: tuple[dict[str, Any], ...]
    figures: tuple[str, ...]  # files
