"""The methods by name: the ablation adds one thing at a time, from the paper's method to RSMatch."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmark.config import BenchmarkConfig
from pipelines.benchmark.methods import ABLATION, ADDITIONS, METHODS, merged
from pipelines.train import TrainConfig

SETTINGS: dict[str, Any] = {"labeled": "seed"}
SWITCHES = (
    "bootstrap", "residual_evidence", "share_thresholds", "confident_real", "residual_planes", "residual_features",
    "equalize_spectrum", "resampled_views", "split_norms", "average_over_real",
)  # fmt: skip


def train_config(method: str) -> TrainConfig:
    return TrainConfig(**merged(SETTINGS, METHODS[method].changes))


def additions(method: str) -> set[str]:
    """Which of our additions a method has."""
    config = train_config(method)
    resampled, equalized = config.controls.resampled_views, config.recipe.equalize_spectrum
    on = {name: getattr(config.controls, name) for name in SWITCHES if name in type(config.controls).model_fields}
    on |= {
        "bootstrap": config.controls.bootstraps,
        "equalize_spectrum": equalized,
        "resampled_views": equalized if resampled is None else resampled,
    }
    return {name for name, value in on.items() if value}


def test_later_settings_override_earlier_ones_key_by_key() -> None:
    first = {"seed": 1, "recipe": {"num_steps": 5, "warmup": 0.1}}
    second = {"recipe": {"num_steps": 9}, "controls": {"routing": "oracle"}}
    assert merged(first, second) == {
        "seed": 1, "recipe": {"num_steps": 9, "warmup": 0.1}, "controls": {"routing": "oracle"},
    }  # fmt: skip
    assert first == {"seed": 1, "recipe": {"num_steps": 5, "warmup": 0.1}}
    assert merged({"a": {"b": 1}}, {"a": 2}, {"a": {"c": 3}}) == {"a": {"c": 3}}
    assert merged() == {}


def test_the_ablation_begins_at_the_papers_method_and_ends_at_rsmatch() -> None:
    assert (ABLATION[0], ABLATION[-1]) == ("paper", "rsmatch")
    assert additions("paper") == set()
    assert train_config("paper").recipe.equalize_spectrum is False
    assert train_config("rsmatch") == TrainConfig(**SETTINGS)
    assert additions("rsmatch") == set(SWITCHES)


def test_each_step_of_the_ablation_adds_exactly_one_thing_and_what_its_name_says() -> None:
    assert len(ABLATION) == len(ADDITIONS) + 1
    named = zip(ABLATION, ABLATION[1:], ADDITIONS, SWITCHES, strict=False)
    for before, after, name, switch in named:
        assert additions(before) < additions(after), after
        assert additions(after) - additions(before) == {switch}, after
        assert after in (f"plus-{name}", "rsmatch")


def test_without_an_addition_it_alone_is_off() -> None:
    for name, switch in zip(ADDITIONS, SWITCHES, strict=True):
        assert additions(f"rsmatch-without-{name}") == set(SWITCHES) - {switch}, name
    assert additions("rsmatch-as-is") == set(SWITCHES) - {"equalize_spectrum", "resampled_views"}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_a_valid_training_that_keeps_the_settings_of_the_others(method: str) -> None:
    given = {"recipe": {"num_steps": 7, "learning_rate": 0.01}, "network": {"backbone": "small"}}
    config = TrainConfig(**merged(SETTINGS, given, METHODS[method].changes))
    assert (config.recipe.num_steps, config.recipe.learning_rate, config.network.backbone) == (7, 0.01, "small")
    assert config.recipe.method in method or config.recipe.method in ("rsmatch", "fixmatch")
    if METHODS[method].real_only:
        assert method == "fixmatch-real"


def test_ablation_is_spelled_out() -> None:
    config = BenchmarkConfig(real=Path("r"), synthetic=Path("s"), test=Path("t"), methods=("fixmatch", "ablation"))
    assert config.methods == ("fixmatch", *ABLATION)
