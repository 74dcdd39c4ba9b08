"""What follows from the settings of a training, and what of them a resume must repeat."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.recipe import CLASSIFIER_REVISION, DETECTOR_REVISION
from pipelines.images.views import Decoder
from pipelines.train import TrainConfig

LABELED = Path("seed")


def test_groups_have_the_defaults_of_paper_scale() -> None:
    config = TrainConfig(labeled=LABELED)
    assert (config.network.backbone, config.network.detector) == ("auto", "auto")
    assert config.recipe.num_steps == 2**20
    assert config.machine.device == "auto"


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        ({}, (32, 32)),
        ({"image_size": 224}, (224, 96)),
        ({"detector_size": 64}, (32, 64)),
        ({"backbone": "timm:tf_efficientnet_lite0"}, (224, 96)),
    ],
)
def test_the_detector_sees_the_image_size_and_at_most_96_pixels_unless_told_otherwise(
    network: dict[str, Any], sizes: tuple[int, int]
) -> None:
    assert TrainConfig(labeled=LABELED, network={"backbone": "small"} | network).decoder == Decoder(*sizes)


@pytest.mark.parametrize(
    ("changes", "has_detector", "needs_truth"),
    [
        ({}, True, False),
        ({"recipe": {"method": "fixmatch"}}, False, False),
        ({"recipe": {"method": "fixmatch"}, "controls": {"routing": "oracle"}}, False, False),
        ({"controls": {"routing": "oracle"}}, False, True),
        ({"controls": {"detector_examples": "truth"}}, True, True),
    ],
)
def test_only_rsmatch_has_a_detector_and_only_oracles_need_the_truth(
    changes: dict[str, Any], has_detector: bool, needs_truth: bool
) -> None:
    config = TrainConfig(labeled=LABELED, **changes)
    assert (config.has_detector, config.needs_truth) == (has_detector, needs_truth)
    both, alone = f"{CLASSIFIER_REVISION}.{DETECTOR_REVISION}", str(CLASSIFIER_REVISION)
    assert config.revision == (both if has_detector else alone)


def test_identity_is_what_changes_the_numbers() -> None:
    config = TrainConfig(labeled=LABELED)
    free: list[dict[str, Any]] = [
        {"pool": Path("other")}, {"run": Path("elsewhere")}, {"resume": False}, {"validation": Path("v")},
        {"truth": Path("t")},
        {"machine": {"device": "cpu"}}, {"machine": {"memory": "stream"}}, {"machine": {"checkpoint_every": 7}},
        {"machine": {"evaluate_every": 7}},
    ]  # fmt: skip
    for changes in free:
        assert TrainConfig(labeled=LABELED, **changes).identity == config.identity, changes
    bound: list[dict[str, Any]] = [
        {"seed": 1}, {"network": {"backbone": "small"}}, {"recipe": {"momentum": 0.5}},
        {"controls": {"split_norms": False}}, {"machine": {"precision": "fp32"}}, {"machine": {"log_every": 7}},
        {"machine": {"compile": "on"}}, {"network": {"tiles": 9}}, {"network": {"detector": "panel"}},
        {"known_synthetic": Path("fakes")}, {"ignore_declared": True}, {"scores": ("other=other.csv",)},
    ]  # fmt: skip
    for changes in bound:
        assert TrainConfig(labeled=LABELED, **changes).identity != config.identity, changes


@pytest.mark.parametrize(
    "changes", [{"num_steps": 5}, {"recipe": {"num_step": 5}}, {"network": {"start": "run"}}, {"machine": {"gpu": 1}}]
)
def test_unknown_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        TrainConfig(labeled=LABELED, **changes)
