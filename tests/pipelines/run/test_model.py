"""A model is loaded as it was saved, with the detector that it was trained with, or refused in a sentence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.backbones import IMAGENET_MEAN, IMAGENET_STD, Standardize
from models.classifier import Classifier
from models.detector import Detector
from pipelines.errors import BadInput, CorruptShard, Incompatible, MissingArtifact
from pipelines.images.views import Views
from pipelines.run import model, verdicts, weights
from pipelines.run.scorer import Scorer

pytestmark = pytest.mark.slow  # an export of a network takes a second

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
    config = replace(config, mean=IMAGENET_MEAN, std=IMAGENET_STD)
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


def test_only_what_was_trained_is_a_program(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(tmp_path)
    assert sorted(path.name for path in folder.glob("*.pt2")) == ["classifier.pt2", "detector.pt2"]
    save(tmp_path, has_detector=False)
    assert [path.name for path in folder.glob("*.pt2")] == ["classifier.pt2"]
    card = (folder / "README.md").read_text()
    assert "trains no detector" in card and "None, as there is no detector." in card


def test_equal_trainings_leave_equal_programs(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save(tmp_path / name)
    one, other = ((tmp_path / name / "model" / "detector.pt2").read_bytes() for name in ("one", "other"))
    assert one == other


def test_the_card_states_data_thresholds_estimates_and_limits(tmp_path: Path) -> None:
    held_out = tuple(i / 100 for i in range(60))
    save(tmp_path, held_out=held_out, estimated_share=0.312, estimated_interval=(0.25, 0.375))
    card = (tmp_path / "model" / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("#")][1:] == [
        "## Data", "## Thresholds", "## Estimates", "## Limits",
    ]  # fmt: skip
    said = " ".join(card.split())
    chosen = verdicts.choose(held_out, None)
    assert "The pool `pool`" in said and "real ones of 2 classes (a, b)" in said
    assert (
        f"synthetic where prob_synthetic is at least {chosen.synthetic_from:.4g}" in said and chosen.statement in said
    )
    assert "31.2% of the pool is synthetic (25.0% to 37.5% with 95 % confidence)" in said
    assert "How often the labels are right was not measured" in said and "is not calibrated" in said
    assert max(map(len, card.splitlines())) <= 120


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


def timm_config(name: str, size: int) -> model.ModelConfig:
    return model.ModelConfig(
        classes=("a", "b"), method="fixmatch", backbone=name, image_size=size, detector_size=32, num_steps=0, pool="p"
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:test_vit", 64), ("timm:test_convnext", 64), ("timm:tf_efficientnet_lite0", 64),
        ("timm:mobilenetv3_small_100", 64), ("timm:swin_tiny_patch4_window7_224", 96), ("timm:levit_128s", 64),
        ("timm:vit_pe_core_tiny_patch16_384.fb", 64), ("timm:mixer_s32_224", 64),
    ],
)  # fmt: skip
def test_a_timm_network_is_saved_exported_and_loaded_with_its_inputs(tmp_path: Path, name: str, size: int) -> None:
    torch.manual_seed(0)
    classifier = Classifier(name, 2, size).eval()
    classifier.standardize = Standardize((0.25, 0.5, 0.75), (0.5, 0.25, 2.0))  # as of weights with a tag of their own
    classifier.is_pretrained = True
    model.save(tmp_path / "model", timm_config(name, size), classifier, Detector().eval())
    loaded = model.load(tmp_path, CPU)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    program = torch.export.load(tmp_path / "model" / "classifier.pt2").module()
    with torch.no_grad():
        expected = classifier(images).real
        torch.testing.assert_close(loaded.classifier(images).real, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(program(images), expected, rtol=1e-3, atol=1e-4)
    values = json.loads((tmp_path / "model" / "config.json").read_bytes())
    assert (values["mean"], values["std"]) == ([0.25, 0.5, 0.75], [0.5, 0.25, 2.0])
    assert loaded.classifier.is_pretrained


def test_a_run_is_continued_at_another_image_size_where_the_network_can(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier("timm:vit_tiny_patch16_224", 2, 64).eval()
    classifier.is_pretrained = True
    model.save(tmp_path / "model", timm_config("timm:vit_tiny_patch16_224", 64), classifier, Detector().eval())
    started = Classifier("timm:vit_tiny_patch16_224", 2, 96)
    model.init_from(started, "timm:vit_tiny_patch16_224", ("a", "b"), tmp_path)
    assert torch.equal(started.real.weight, classifier.real.weight)
    assert started.is_pretrained
    assert started.backbone.pos_embed.shape[1] == 37


def test_a_run_of_another_image_size_is_refused_where_the_network_cannot(tmp_path: Path) -> None:
    mixer = Classifier("timm:mixer_s32_224", 2, 64).eval()
    model.save(tmp_path / "model", timm_config("timm:mixer_s32_224", 64), mixer, Detector().eval())
    with pytest.raises(Incompatible, match=r"trained at 64 px, does not fit .* Use the same --image-size"):
        model.init_from(Classifier("timm:mixer_s32_224", 2, 96), "timm:mixer_s32_224", ("a", "b"), tmp_path)


def test_a_backbone_starts_from_the_installed_weights_and_is_known_to(tmp_path: Path) -> None:
    name = "timm:tf_efficientnet_lite0"
    installed = weights.embedded_weights(name)
    if installed is None:
        pytest.skip("the package with the weights is not installed")
    classifier = Classifier(name, 2, 64)
    assert not classifier.is_pretrained
    model.init_backbone(classifier, name, None)
    assert classifier.is_pretrained
    assert torch.equal(classifier.backbone.conv_head.weight, installed["conv_head.weight"])
    torch.save({"state_dict": installed}, tmp_path / "lite.pth")
    with pytest.raises(BadInput, match=r"lite.pth does not fit timm:test_vit: it lacks '.*' \(\d+ of \d+ tensors"):
        model.init_backbone(Classifier("timm:test_vit", 2), "timm:test_vit", tmp_path / "lite.pth")


def test_weights_for_another_image_size_are_refused_where_they_cannot_be_resized(tmp_path: Path) -> None:
    name = "timm:pit_ti_224"
    torch.save(Classifier(name, 2).backbone.state_dict(), tmp_path / "pit.pth")
    with pytest.raises(BadInput, match=r"has 'pos_embed' of shape .* Published ones fit --image-size 224\.$"):
        model.init_backbone(Classifier(name, 2, 96), name, tmp_path / "pit.pth")
