"""Configuration and summary of `curate benchmark`."""

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

from pipelines.benchmark.methods import ABLATION, METHODS
from pipelines.train import TrainConfig


class BenchmarkConfig(BaseModel):
    """Images, matrix of runs, and settings of the trainings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    real: Path = Field(
        description="Real images: a folder per class, a parquet file, or WebDataset shards with .cls members."
    )
    synthetic: Path = Field(description="Synthetic images of the same classes, in any of the same forms.")
    test: Path = Field(description="Real test images, in any of the same forms.")
    photographs: Path | None = Field(
        default=None,
        description="Larger real photos, in any of the same forms, to measure how often resizing alone makes the "
        "detector call them synthetic.",
    )
    out: Path = Field(default=Path("benchmark"), description="Folder to write the results to.")
    methods: tuple[str, ...] = Field(
        default=("supervised", "fixmatch-real", "fixmatch", "rsmatch", "rsmatch-oracle"),
        description="Methods to compare; repeat for several. An unknown name lists all that there are.",
    )
    contaminations: tuple[str, ...] = Field(
        default=("balanced",),
        description="Kinds of synthetic images: balanced, imbalanced, off-class or low-quality. NAME:SHARE makes only "
        "a share of them so; repeat for several.",
    )
    alphas: tuple[NonNegativeFloat, ...] = Field(
        default=(0.5,), description="Synthetic images per real image in the pool; repeat for several."
    )
    labels: tuple[PositiveInt, ...] = Field(default=(250,), description="Labeled images in all; repeat for several.")
    seeds: int = Field(default=3, ge=1, description="Number of seeds; each draws its own images.")
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="Classes of the task; repeat for several. Without them all, or those that off-class contamination "
        "leaves.",
    )
    num_real: tuple[PositiveInt, ...] = Field(
        default=(20_000,), description="Unlabeled real images in the pool; repeat for several."
    )
    num_test: int = Field(default=10_000, ge=1, description="Test images.")
    size: int | None = Field(
        default=None,
        ge=8,
        description="Send all images through the same resize to this side, in pixels, and the same JPEG encoder. "
        "Without it, the files stay as they are.",
    )
    jobs: int = Field(default=1, ge=1, description="Runs that train in parallel.")
    start: dict[str, Any] | None = Field(
        default=None,
        description="Settings of `curate train` (start.network, start.recipe, ...) for the network that all methods "
        "start from. Without them, each starts from random weights.",
    )
    learning_rates: tuple[PositiveFloat, ...] = Field(
        default=(0.03,), description="Learning rates; repeat for several, and each method is judged at its best."
    )
    train: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of `curate train` (train.network, train.recipe, ...) for all runs.",
    )

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
            raise ValueError("nnPU can learn nothing from a clean pool; leave out 0, or the method rsmatch-nnpu")
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
        from pipelines.benchmark import mixtures  # here, because a configuration needs no heavy library

        for spec in specs:
            mixtures.Contamination.parse(spec)
        return specs


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of the benchmark."""

    num_runs: int
    num_on_record: int  # runs that were skipped, because an earlier call had finished them
    seconds: float
    table: tuple[dict[str, Any], ...]
    figures: tuple[str, ...]  # files
