"""Training on a small real pool: the same numbers from memory and from the shards, and all that it leaves."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbones import backbone
from models.detector import Detector
from models.rsmatch import RSMatch
from pipelines import train
from pipelines.errors import BadInput, Incompatible, MissingArtifact
from pipelines.run import model, quality, verdicts
from pipelines.train import stage
from pipelines.train.data import Data
from tests.conftest import World
from tests.pipelines.train.runs import config, metrics, weights

CPU = torch.device("cpu")


def random_images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)


def test_what_training_leaves(uninterrupted: Path, world: World) -> None:
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert {"sup_real", "self_real", "dummy_share", "confident_share", "pseudo_label_share/0"} <= set(lines[0])
    assert {"accuracy", "detector_auroc", "detector_sup", "queue_score"} <= set(lines[-1])
    written = json.loads((uninterrupted / "run.json").read_text())
    summary = written["summary"]
    assert summary["num_labeled"] == 40
    assert summary["classes"] == ["cross", "disc", "square", "stripes", "triangle"]
    given = config(world, uninterrupted, validation=world.test, truth=world.truth)
    chosen = {"pretrained": False, "frozen": False, "detector": "network", "image_size": 32}  # what was left open
    resolved = given.model_copy(update={"network": given.network.model_copy(update=chosen)})
    assert written["config"] == resolved.model_dump(mode="json")
    loaded = model.load(uninterrupted, CPU)
    assert loaded.config.classes == tuple(summary["classes"])
    assert (uninterrupted / "classes.txt").read_text() == "cross\ndisc\nsquare\nstripes\ntriangle\n"
    assert loaded.config.has_detector
    assert loaded.config.estimated_share == summary["estimated_share"]


def test_training_measures_its_detector(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    few = quality.load(uninterrupted)
    assert few is not None and (few.num_labeled, few.auroc, few.share_at_least) == (8, None, 0)
    assert "look at images before you delete any" in few.warning
    summary = train.run(config(world, tmp_path, recipe={"held_out": 0.5}))
    assert quality.load(tmp_path) == summary.quality
    assert summary.quality is not None and summary.quality.num_labeled == 20
    assert summary.quality.auroc_interval is not None
    low, high = summary.quality.auroc_interval
    assert 0.5 <= low < high <= 1
    assert summary.quality.share_at_least <= 1 / 3  # the toy's share
    train.run(config(world, tmp_path, recipe={"method": "fixmatch"}, resume=False))
    assert quality.load(tmp_path) is None  # a baseline has no detector, and the earlier one is gone


def test_thresholds_are_chosen_by_the_images_that_the_detector_has_not_seen(uninterrupted: Path) -> None:
    held_out = model.load(uninterrupted, CPU).config.held_out
    assert len(held_out) == 8  # a fifth of 40
    assert verdicts.load(uninterrupted) == verdicts.choose(held_out, None)


@pytest.mark.parametrize("equalize", [True, False])
def test_the_saved_detector_sees_images_as_the_trained_one_did(world: World, tmp_path: Path, equalize: bool) -> None:
    train.run(config(world, tmp_path, recipe={"num_steps": 2, "equalize_spectrum": equalize}))
    detector = model.load(tmp_path, CPU).detector
    images = random_images()
    same, other = Detector(equalize=equalize).eval(), Detector(equalize=not equalize).eval()
    for network in (same, other):
        network.load_state_dict(detector.state_dict())
    torch.testing.assert_close(detector(images), same(images))
    assert not torch.allclose(detector(images), other(images))


def test_a_detector_without_its_further_inputs_is_loaded_without_them(world: World, tmp_path: Path) -> None:
    controls = {"residual_planes": False, "residual_features": False}
    train.run(config(world, tmp_path, recipe={"num_steps": 2}, controls=controls))
    detector = model.load(tmp_path, CPU).detector
    assert detector.features[0].in_channels == 3
    images = random_images()
    before = detector(images)
    detector.linear.weight.fill_(1.0)
    assert torch.equal(detector(images), before)


def test_exported_programs_need_torch_alone_and_agree(uninterrupted: Path, tmp_path: Path) -> None:
    images = random_images()
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch\n"
        "images = torch.load('images.pt', weights_only=True)\n"
        "programs = [torch.export.load(path).module() for path in sys.argv[1:]]\n"
        "found = [[program(images[:count]) for count in (1, 2, 5)] for program in programs]\n"
        "torch.save(found, 'found.pt')\n"
        "assert not {'timm', 'models', 'pipelines', 'curate'} & set(sys.modules)\n"
    )
    paths = [str(uninterrupted / "model" / f"{name}.pt2") for name in ("classifier", "detector")]
    subprocess.run([sys.executable, "-c", script, *paths], check=True, cwd=tmp_path)
    trained = model.load(uninterrupted, CPU)
    logits, probs = torch.load(tmp_path / "found.pt", weights_only=True)
    expected = trained.classifier(images).real, trained.detector(images).sigmoid()
    for i, count in enumerate((1, 2, 5)):
        torch.testing.assert_close(logits[i], expected[0][:count], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(probs[i], expected[1][:count], rtol=0, atol=1e-5)
    assert probs[2].std() > 0
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                assert str(Path(model.__file__).parent).encode() not in archive.read(name)  # no path of this machine


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    uninterrupted: Path, world: World, tmp_path: Path
) -> None:
    train.run(config(world, tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(uninterrupted)
    train.run(config(world, tmp_path / "other", seed=1))
    assert weights(tmp_path / "other") != weights(uninterrupted)


def test_streamed_training_is_the_same_as_from_memory(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    train.run(config(world, tmp_path, machine={"memory": "stream"}))
    assert weights(tmp_path) == weights(uninterrupted)


# Networks to begin with.


def test_training_starts_from_the_classifier_of_another_run(world: World, tmp_path: Path) -> None:
    train.run(config(world, tmp_path / "first", recipe={"method": "supervised", "num_steps": 4}))
    first = load_file(tmp_path / "first" / "model" / "classifier.safetensors")
    still = {"recipe": {"num_steps": 1, "learning_rate": 1e-12, "ema_decay": 0.0, "norm_momentum": 1e-12}}
    train.run(config(world, tmp_path / "second", still, network={"init_from": tmp_path / "first"}))
    second = load_file(tmp_path / "second" / "model" / "classifier.safetensors")
    for name, value in first.items():
        # A dummy head that nothing has trained begins as the real one.
        expected = first[name.replace("dummy", "real")]
        torch.testing.assert_close(second[name], expected if value.ndim else second[name], rtol=1e-5, atol=1e-6)
    train.run(config(world, tmp_path / "third", still, network={"init_from": tmp_path / "second"}))
    third = load_file(tmp_path / "third" / "model" / "classifier.safetensors")
    torch.testing.assert_close(third["dummy.weight"], second["dummy.weight"], rtol=1e-5, atol=1e-6)


def test_a_start_that_does_not_fit_is_refused(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="needs a run with the same --backbone and classes"):
        train.run(config(world, tmp_path, network={"init_from": uninterrupted, "backbone": "wrn-28-2"}))
    with pytest.raises(MissingArtifact, match="no trained model"):
        train.run(config(world, tmp_path, network={"init_from": tmp_path / "nothing"}))
    both = {"init_from": uninterrupted, "weights": tmp_path / "backbone.safetensors"}
    with pytest.raises(BadInput, match="Leave out --weights"):
        train.run(config(world, tmp_path, network=both))


def test_any_timm_backbone_and_weights_from_a_file(world: World, tmp_path: Path) -> None:
    network, _ = backbone("timm:resnet10t")
    start = {name: value + 0.5 if name == "conv1.0.weight" else value for name, value in network.state_dict().items()}
    save_file(start, tmp_path / "start.safetensors")
    settings = config(
        world, tmp_path / "run",
        network={"backbone": "timm:resnet10t", "weights": tmp_path / "start.safetensors", "image_size": 32},
        recipe={"num_steps": 1, "learning_rate": 1e-9, "weight_decay": 0.0, "method": "supervised"},
    )  # fmt: skip
    train.run(settings)
    trained = load_file(tmp_path / "run" / "model" / "classifier.safetensors")
    torch.testing.assert_close(trained["backbone.conv1.0.weight"], start["conv1.0.weight"])


def test_weights_of_another_network_are_refused(world: World, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"Are these weights of small\?"):
        train.run(config(world, tmp_path / "run", network={"weights": tmp_path / "w.safetensors"}))


# Other methods.


@pytest.mark.parametrize("method", ["fixmatch", "supervised"])
def test_baselines_train_no_detector(world: World, tmp_path: Path, method: str) -> None:
    summary = train.run(config(world, tmp_path, recipe={"method": method, "num_steps": 6}, validation=world.test))
    assert not model.load(tmp_path, CPU).config.has_detector
    assert summary.estimated_share is None
    assert "detector_sup" not in metrics(tmp_path)[-1]
    assert metrics(tmp_path)[-1]["accuracy"] >= 0


def test_detector_in_the_papers_way_starts_at_once(world: World, tmp_path: Path) -> None:
    train.run(config(world, tmp_path, recipe={"num_steps": 6}, controls={"detector_init": "random"}))
    assert metrics(tmp_path)[0]["detector_sup"] > 0


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_calibration_leaves_the_estimated_share_above_the_threshold(share: float, world: World, tmp_path: Path) -> None:
    """At the ends, too: a pool that seems clean, and one of which nothing seems real."""
    settings = config(world, tmp_path)
    data = Data.read(settings, CPU)
    method, _ = stage.build(settings, data, CPU)
    assert isinstance(method, RSMatch)
    images = data.pixels(settings, CPU, lambda tick: None)
    method.thresholds.fit(share, (share, share))
    with torch.no_grad():
        logits = method.detector.average(images.tiles(torch.arange(data.num_unlabeled)))
    method.thresholds.calibrate(logits)
    assert (logits >= method.thresholds.detector).float().mean().item() == pytest.approx(
        share, abs=1 / data.num_unlabeled
    )


def test_the_saved_detector_calls_the_estimated_share_synthetic(uninterrupted: Path, world: World) -> None:
    """Its logits begin at the threshold that calibration set."""
    trained = model.load(uninterrupted, CPU)
    settings = config(world, uninterrupted)
    data = Data.read(settings, CPU)
    tiles = data.pixels(settings, CPU, lambda tick: None).tiles(torch.arange(data.num_unlabeled))
    assert trained.config.estimated_share is not None
    called = (trained.detector(tiles) >= 0).float().mean().item()
    assert called == pytest.approx(trained.config.estimated_share, abs=2 / data.num_unlabeled)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": {"backbone": "resnet50"}}, "--backbone resnet50"),
        ({"network": {"backbone": "timm:resnet5000"}}, "--backbone timm:resnet5000"),
        ({"network": {"pretrained": True}}, "small has no published weights"),
        ({"network": {"weights": Path("nowhere.safetensors")}}, "--weights nowhere.safetensors"),
        ({"labeled": Path("nowhere")}, "nowhere does not exist"),
        ({"controls": {"detector_examples": "nnpu"}}, "Set share_real"),
    ],
)
def test_wrong_settings_are_one_sentence(world: World, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        train.run(config(world, tmp_path, changes))


def test_a_folder_that_is_no_run_is_left_alone(world: World, tmp_path: Path) -> None:
    for name in ("pool", "seed"):
        folder = shutil.copytree(world.root / name, tmp_path / name)
        before = sorted(folder.rglob("*"))
        with pytest.raises(Incompatible, match=f"{name}: is not empty and not a run"):
            train.run(config(world, folder))
        assert sorted(folder.rglob("*")) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("")  # who keeps a file there is not kept out
    train.run(config(world, tmp_path / "run", recipe={"method": "supervised", "num_steps": 1}))


def test_a_training_that_diverges_is_reported_and_leaves_no_model(world: World, tmp_path: Path) -> None:
    wild = config(world, tmp_path / "run", recipe={"learning_rate": 1e30}, machine={"precision": "fp32"})
    with pytest.raises(
        BadInput, match=r"training diverged: the loss is NaN at step \d+\. .* a learning_rate below 1e\+30"
    ):
        train.run(wild)
    assert not (tmp_path / "run" / "model").exists()


def test_without_a_pool_the_sentence_says_what_to_run(world: World, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="un `curate ingest"):
        train.run(config(world, tmp_path, pool=tmp_path / "nowhere"))
