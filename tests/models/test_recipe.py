"""The settings of a method, and what follows from them."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from models.recipe import Controls, Recipe


def test_the_controls_of_today_are_the_default() -> None:
    """RSMatch with all of our additions, routed by its detector, which learns from the class-wise queue."""
    assert Controls().model_dump() == {
        "routing": "detector",
        "dummy_weight": 1.0,
        "dummy_labels": "dummy",
        "detector_examples": "queue",
        "share_real": None,
        "weak_gradient": True,
        "synthetic_targets": "batch",
        "detector_init": "features",
        "residual_evidence": True,
        "share_thresholds": True,
        "confident_real": True,
        "residual_planes": True,
        "residual_features": True,
        "resampled_views": None,
        "split_norms": True,
        "average_over_real": True,
    }


def test_the_recipe_is_fixmatchs() -> None:
    recipe = Recipe()
    assert (recipe.method, recipe.rule, recipe.num_steps) == ("rsmatch", "fixmatch", 2**20)
    assert (recipe.batch_size, recipe.unlabeled_ratio, recipe.confidence_threshold) == (64, 7, 0.95)
    assert (recipe.learning_rate, recipe.momentum, recipe.weight_decay) == (0.03, 0.9, 5e-4)
    assert (recipe.ema_decay, recipe.norm_momentum, recipe.warmup) == (0.999, 0.001, 0.05)
    assert (recipe.queue_length, recipe.queue_per_class, recipe.equalize_spectrum) == (256, 1, True)


def test_warm_up_is_a_share_of_the_steps() -> None:
    assert Recipe(num_steps=300, warmup=0.1).warmup_steps == 30
    assert Recipe(num_steps=300, warmup=0.0).warmup_steps == 0


def test_the_queue_of_a_fifth_of_the_classes_grows_unless_told_otherwise() -> None:
    assert [Recipe().pushed_classes(count) for count in (2, 5, 10, 100)] == [1, 1, 2, 10]
    assert Recipe(queue_classes=3).pushed_classes(100) == 3


@pytest.mark.parametrize(
    ("controls", "trains", "has_queue", "bootstraps", "needs_truth"),
    [
        ({}, True, True, True, False),
        ({"detector_init": "random"}, True, True, False, False),
        ({"routing": "oracle"}, False, True, False, True),
        ({"routing": "random"}, False, True, False, True),
        ({"detector_examples": "global-queue"}, True, True, True, False),
        ({"detector_examples": "nnpu", "share_real": 0.5}, True, False, False, False),
        ({"detector_examples": "truth"}, True, False, False, True),
    ],
)
def test_what_follows_from_the_controls(
    controls: dict[str, Any], trains: bool, has_queue: bool, bootstraps: bool, needs_truth: bool
) -> None:
    built = Controls(**controls)
    assert (built.trains_detector, built.has_queue, built.bootstraps, built.needs_truth) == (
        trains, has_queue, bootstraps, needs_truth,
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"warmup": 1.0}, {"confidence_threshold": 0.0}, {"rate": 0.1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe(**wrong)


def test_every_setting_says_what_it_is() -> None:
    for kind in (Recipe, Controls):
        for name, field in kind.model_fields.items():
            assert field.description and field.description.endswith((".", ")")), name


@pytest.mark.slow
def test_a_command_line_that_lists_them_imports_no_torch() -> None:
    code = "import sys, models.recipe; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
