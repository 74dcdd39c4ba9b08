"""A model is loaded as it was saved, with the detector that it was trained with, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.classifier import Classifier
from models.detector import Detector
from pipelines.errors import CorruptShard, MissingArtifact
from pipelines.run import model

CPU = torch.device("cpu")


def save(run: Path, **settings: Any) -> model.ModelConfig:
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=("a", "b"), method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=0,
        pool="pool", **settings,
    )  # fmt: skip
    classifier, detector = config.build()
    model.save(run / "model", config, classifier.eval(), detector.eval())
    return config


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"equalize_spectrum": False},
        {"residual_planes": False},
        {"residual_features": False},
        {"has_detector": False, "held_out": (0.1, 0.4), "estimated_share": 0.3, "estimated_interval": (0.2, 0.4)},
    ],
)
def test_a_model_is_loaded_as_it_was_saved(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = save(tmp_path, **settings)
    loaded = model.load(tmp_path, CPU)
    assert json.loads(json.dumps(vars(loaded.config))) == json.loads(json.dumps(vars(config)))
    assert (loaded.config.classes, loaded.config.held_out) == (config.classes, config.held_out)
    torch.manual_seed(0)
    classifier, detector = config.build()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.classifier(images), classifier.eval()(images))
        torch.testing.assert_close(loaded.detector(images), detector.eval()(images))
    assert (loaded.decoder.image_size, loaded.decoder.detector_size) == (32, 32)


def test_without_a_model_the_sentence_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="un `curate train"):
        model.load(tmp_path, CPU)


@pytest.mark.parametrize("text", ["{", '{"classes": ["a"]}', "[]"])
def test_a_damaged_configuration_is_one_sentence(tmp_path: Path, text: str) -> None:
    save(tmp_path)
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(CorruptShard, match="cannot be loaded"):
        model.load(tmp_path, CPU)


def test_a_dummy_head_that_was_not_trained_begins_as_the_real_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    for method in ("rsmatch", "fixmatch"):
        config = model.ModelConfig(
            classes=("a", "b"), method=method, backbone="small", image_size=32, detector_size=32, num_steps=0, pool="p"
        )
        saved = Classifier("small", 2).eval()
        model.save(tmp_path / method / "model", config, saved, Detector().eval())
        started = Classifier("small", 2)
        model.init_from(started, "small", ("a", "b"), tmp_path / method)
        assert torch.equal(started.real.weight, saved.real.weight)
        expected = saved.dummy.weight if method == "rsmatch" else saved.real.weight
        assert torch.equal(started.dummy.weight, expected)
