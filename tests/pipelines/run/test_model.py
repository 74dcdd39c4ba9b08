"""A model is loaded as it was saved, with the detector that it was trained with, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.classifier import Classifier
from models.detector import Detector
from pipelines.errors import CorruptShard, MissingArtifact
from pipelines.images.views import Views
from pipelines.run import model, verdicts
from pipelines.run.scorer import Scorer

CPU = torch.device("cpu")


def save(run: Path, **settings: Any) -> model.ModelConfig:
    torch.manual_seed(0)
    settings = {"classes": ("a", "b")} | settings
    config = model.ModelConfig(
        method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=0, pool="pool", **settings
    )
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


@pytest.mark.parametrize(("embedding", "width"), [("layout", 192), ("backbone", 128)])
def test_without_classes_the_embedding_is_of_the_layout_or_the_backbone(
    tmp_path: Path, embedding: str, width: int
) -> None:
    save(tmp_path)
    assert (tmp_path / "model" / "classifier.pt2").exists()
    save(tmp_path, classes=(), embedding=embedding)
    assert not (tmp_path / "model" / "classifier.pt2").exists()  # that of the earlier training
    loaded = model.load(tmp_path, CPU)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert loaded.config.classes == () and loaded.embed(images).shape == (4, width) == (4, loaded.embedding_width)
    scores = Scorer(loaded, CPU, verdicts.choose((), None)).score_views(Views(images, images))
    assert scores.pseudo_label is scores.confidence is scores.probs is None
    assert scores.embeddings.shape == (4, width) and scores.prob_synthetic is not None
    readme = (tmp_path / "model" / "README.md").read_text()
    assert "there is no classifier" in readme and ("thumbnails of 8x8" in readme) == (embedding == "layout")


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
