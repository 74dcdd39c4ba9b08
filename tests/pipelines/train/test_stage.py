"""Training on a small real pool: resumed exactly, the same from memory and from the shards, alarms that speak."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from models.networks import Detector, backbone
from PIL import Image
from safetensors.torch import load_file, save_file

from models.ranks import Ranks
from models.rsmatch import Recipe
from pipelines import ingest, train
from pipelines.errors import BadInput, CorruptShard, Incompatible, MissingArtifact
from pipelines.pool import pixels
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.run import checkpoint, model
from pipelines.train import TrainConfig
from pipelines.train import stage as train_stage
from pipelines.train.monitor import Watch
from tests.conftest import World
from tests.warm import Process

SMALL: dict[str, Any] = {
    "backbone": "small",
    "num_steps": 24,
    "batch_size": 8,
    "unlabeled_ratio": 2,
    "warmup": 0.25,
    "log_every": 4,
    "checkpoint_every": 6,
    "evaluate_every": 12,
    "device": "cpu",
}


def config(world: World, run: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**(SMALL | {"labeled": world.seed, "pool": world.pool, "run": run} | changes))


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> list[bytes]:
    return [(run / "model" / f"{name}.safetensors").read_bytes() for name in ("classifier", "detector")]


@pytest.fixture(scope="module")
def uninterrupted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    train.run(config(world, run, validation=world.test, truth=world.truth))
    return run


def test_what_training_leaves(uninterrupted: Path, world: World) -> None:
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert {"sup_real", "self_real", "dummy_share", "confident_share", "pseudo_label_share/0"} <= set(lines[0])
    assert {"accuracy", "detector_auroc", "detector_sup", "queue_score"} <= set(lines[-1])
    summary = json.loads((uninterrupted / "run.json").read_text())["summary"]
    assert summary["num_labeled"] == 40
    assert summary["classes"] == ["cross", "disc", "square", "stripes", "triangle"]
    loaded = model.load(uninterrupted, torch.device("cpu"))
    assert loaded.config.classes == tuple(summary["classes"])
    assert loaded.config.has_detector


@pytest.mark.parametrize("equalize", [True, False])
def test_the_saved_detector_sees_images_as_the_trained_one_did(world: World, tmp_path: Path, equalize: bool) -> None:
    train.run(config(world, tmp_path, num_steps=2, equalize_spectrum=equalize))
    detector = model.load(tmp_path, torch.device("cpu")).detector
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    same, other = Detector(equalize=equalize).eval(), Detector(equalize=not equalize).eval()
    for network in (same, other):
        network.load_state_dict(detector.state_dict())
    torch.testing.assert_close(detector(images), same(images))
    assert not torch.allclose(detector(images), other(images))


def test_exported_program_needs_torch_alone_and_agrees(uninterrupted: Path, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch\n"
        "program = torch.export.load(sys.argv[1]).module()\n"
        "torch.save(program(torch.load(sys.argv[2], weights_only=True)), sys.argv[3])\n"
        "assert not {'timm', 'models', 'pipelines', 'curate'} & set(sys.modules)\n"
    )
    paths = [str(path) for path in (uninterrupted / "model" / "classifier.pt2", tmp_path / "images.pt", tmp_path / "o")]
    subprocess.run([sys.executable, "-c", script, *paths], check=True, cwd=tmp_path)
    expected = model.load(uninterrupted, torch.device("cpu")).classifier(images).real
    torch.testing.assert_close(torch.load(tmp_path / "o", weights_only=True), expected, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    uninterrupted: Path, world: World, tmp_path: Path
) -> None:
    train.run(config(world, tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(uninterrupted)
    train.run(config(world, tmp_path / "other", seed=1))
    assert weights(tmp_path / "other") != weights(uninterrupted)


def test_training_goes_on_from_the_classifier_of_another_run(world: World, tmp_path: Path) -> None:
    train.run(config(world, tmp_path / "first", method="supervised", num_steps=4))
    first = load_file(tmp_path / "first" / "model" / "classifier.safetensors")
    still = {"num_steps": 1, "learning_rate": 1e-12, "ema_decay": 0.0, "norm_momentum": 1e-12}
    train.run(config(world, tmp_path / "second", start=tmp_path / "first", **still))
    second = load_file(tmp_path / "second" / "model" / "classifier.safetensors")
    for name, value in first.items():
        # A dummy head that nothing has trained begins as the real one.
        expected = first[name.replace("dummy", "real")]
        torch.testing.assert_close(second[name], expected if value.ndim else second[name], rtol=1e-5, atol=1e-6)
    train.run(config(world, tmp_path / "third", start=tmp_path / "second", **still))
    third = load_file(tmp_path / "third" / "model" / "classifier.safetensors")
    torch.testing.assert_close(third["dummy.weight"], second["dummy.weight"], rtol=1e-5, atol=1e-6)


def test_a_start_that_does_not_fit_is_refused(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="same --backbone and the same classes"):
        train.run(config(world, tmp_path, start=uninterrupted, backbone="wrn-28-2"))
    with pytest.raises(MissingArtifact, match="holds no trained model"):
        train.run(config(world, tmp_path, start=tmp_path / "nothing"))
    with pytest.raises(BadInput, match="leave out --weights"):
        train.run(config(world, tmp_path, start=uninterrupted, weights=tmp_path / "backbone.safetensors"))


def test_streamed_training_is_the_same_as_from_memory(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    train.run(config(world, tmp_path, memory="stream"))
    assert weights(tmp_path) == weights(uninterrupted)


@pytest.mark.parametrize("stop_at", [3, 7, 13])
def test_ctrl_c_saves_and_the_rest_is_the_same_numbers(
    uninterrupted: Path, world: World, tmp_path: Path, stop_at: int
) -> None:
    def interrupt(tick: Any) -> None:
        if tick.unit == "steps" and tick.done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    settings = config(world, tmp_path, validation=world.test, truth=world.truth)
    with pytest.raises(KeyboardInterrupt):
        train.run(settings, interrupt)
    assert not (tmp_path / "model").exists()
    summary = train.run(settings)
    assert summary.resumed_at == stop_at
    assert (tmp_path / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    assert weights(tmp_path) == weights(uninterrupted)


def test_kill_9_costs_the_steps_since_the_checkpoint_only(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    settings = config(world, tmp_path, validation=world.test, truth=world.truth)
    script = (
        "import sys\nfrom pipelines.train import TrainConfig, run\nrun(TrainConfig.model_validate_json(sys.argv[1]))"
    )
    log = tmp_path / "metrics.jsonl"
    child = Process(("-c", script, settings.model_dump_json()))
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with log.open("a") as file:
        file.write('{"step": 9')  # what a kill in the middle of a line leaves
    summary = train.run(settings)
    assert summary.resumed_at in (6, 12, 18, 24)
    assert metrics(tmp_path) == metrics(uninterrupted)
    assert weights(tmp_path) == weights(uninterrupted)


def test_a_finished_run_is_not_trained_again(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    summary = train.run(config(world, tmp_path / "run"))
    assert summary.resumed_at == 24
    assert weights(tmp_path / "run") == weights(uninterrupted)


def test_another_configuration_does_not_resume(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    with pytest.raises(Incompatible, match="other learning_rate"):
        train.run(config(world, tmp_path / "run", learning_rate=0.1))
    assert train.run(config(world, tmp_path / "run", learning_rate=0.1, num_steps=2, resume=False)).resumed_at == 0


def test_a_checkpoint_of_another_version_does_not_resume(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "state.safetensors"
    tensors, state = checkpoint.load(path, torch.device("cpu"))
    del tensors["cut/route"]
    checkpoint.save(path, tensors, state)
    with pytest.raises(Incompatible, match="written by another version"):
        train.run(config(world, tmp_path / "run"))


def test_other_images_do_not_resume(uninterrupted: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    seed = tmp_path / "seed"
    shutil.copytree(world.seed, seed)
    next(seed.rglob("*.jpg")).unlink()
    with pytest.raises(Incompatible, match="other images, labeled"):
        train.run(config(world, tmp_path / "run", labeled=seed))


def test_a_broken_checkpoint_is_one_sentence(world: World, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(CorruptShard, match="not a readable checkpoint"):
        train.run(config(world, tmp_path))


@pytest.mark.parametrize("method", ["fixmatch", "supervised"])
def test_baselines_train_no_detector(world: World, tmp_path: Path, method: str) -> None:
    train.run(config(world, tmp_path, method=method, num_steps=6, validation=world.test))
    assert not model.load(tmp_path, torch.device("cpu")).config.has_detector
    assert "detector_sup" not in metrics(tmp_path)[-1]
    assert metrics(tmp_path)[-1]["accuracy"] >= 0


@pytest.mark.parametrize(("method", "head"), [("openmatch", "one_vs_all"), ("iomatch", "open_set")])
def test_open_set_heads_are_resumed_and_then_thrown_away(
    uninterrupted: Path, world: World, tmp_path: Path, method: str, head: str
) -> None:
    def interrupt(tick: Any) -> None:
        if tick.unit == "steps" and tick.done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    once, twice = (
        config(world, tmp_path / name, method=method, num_steps=10, validation=world.test) for name in ("once", "twice")
    )
    train.run(once)
    with pytest.raises(KeyboardInterrupt):
        train.run(twice, interrupt)
    assert train.run(twice).resumed_at == 5
    assert metrics(twice.run) == metrics(once.run)
    assert {"sup_open", "self_open", "inlier_share", "accuracy"} <= set(metrics(once.run)[-1])
    states = [load_file(run / "checkpoint" / "state.safetensors") for run in (once.run, twice.run)]
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)  # no detector, and so no cut
    assert f"open/{head}.weight" in states[0]
    saved = load_file(once.run / "model" / "classifier.safetensors")
    assert saved.keys() == load_file(uninterrupted / "model" / "classifier.safetensors").keys()
    assert not model.load(once.run, torch.device("cpu")).config.has_detector


def test_detector_in_the_papers_way_starts_at_once(world: World, tmp_path: Path) -> None:
    train.run(config(world, tmp_path, detector_init="random", num_steps=6))
    assert metrics(tmp_path)[0]["detector_sup"] > 0


def test_seeds_that_lie_in_the_pool_are_taken_out(world: World, tmp_path: Path) -> None:
    from pipelines.pool.manifest import Pool, read_parquet

    pool = Pool.open(world.pool)
    rows = pool.rows(pool.shards[0]).slice(0, 6).to_pylist()
    truth = {row["key"]: row["cls"] for row in read_parquet(world.truth).to_pylist()}
    seed = tmp_path / "seed"
    shutil.copytree(world.seed, seed)
    tar = pool.tar(pool.shards[0]).read_bytes()
    for row in rows:
        data = tar[row["offset"] : row["offset"] + row["num_bytes"]]
        label = sorted(path.name for path in world.seed.iterdir())[max(0, truth[row["member"].split(".")[0]])]
        (seed / label / f"also-in-the-pool-{row['key']}.jpg").write_bytes(data)
    summary = train.run(config(world, tmp_path / "run", labeled=seed, num_steps=2))
    assert summary.labeled_in_pool == 6
    assert summary.num_unlabeled == pool.num_images - 6


def test_any_timm_backbone_and_weights_from_a_file(world: World, tmp_path: Path) -> None:
    network, _ = backbone("timm:resnet10t")
    start = {name: value + 0.5 if name == "conv1.0.weight" else value for name, value in network.state_dict().items()}
    save_file(start, tmp_path / "start.safetensors")
    settings = config(
        world, tmp_path / "run", backbone="timm:resnet10t", weights=tmp_path / "start.safetensors",
        num_steps=1, learning_rate=1e-9, weight_decay=0.0, method="supervised",
    )  # fmt: skip
    train.run(settings)
    trained = load_file(tmp_path / "run" / "model" / "classifier.safetensors")
    torch.testing.assert_close(trained["backbone.conv1.0.weight"], start["conv1.0.weight"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "resnet50"}, "--backbone resnet50"),
        ({"backbone": "timm:resnet5000"}, "--backbone timm:resnet5000"),
        ({"pretrained": True}, "small has no published weights"),
        ({"weights": Path("nowhere.safetensors")}, "--weights nowhere.safetensors"),
        ({"labeled": Path("nowhere")}, "nowhere: does not exist"),
    ],
)
def test_wrong_settings_are_one_sentence(world: World, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        train.run(config(world, tmp_path, **changes))


@pytest.mark.parametrize("memory", ["memory", "stream"])
def test_a_truth_of_other_images_is_refused(world: World, tmp_path: Path, memory: str) -> None:
    (tmp_path / "truth.csv").write_text("key,is_synthetic\nelsewhere,1\n")
    with pytest.raises(BadInput, match=r"--truth covers no image of .*\. Its keys must be"):
        train.run(config(world, tmp_path / "run", truth=tmp_path / "truth.csv", memory=memory))


def test_a_pool_of_one_image_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "crawl" / "one.png")
    ingest.run(ingest.IngestConfig(sources=(str(tmp_path / "crawl"),), pool=tmp_path / "pool", jobs=1))
    with pytest.raises(BadInput, match="pool: 1 of its images are not in the labeled set; training needs 2 or more"):
        train.run(config(world, tmp_path / "run", pool=tmp_path / "pool"))


def test_weights_of_another_network_are_refused(world: World, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"is it of small\?"):
        train.run(config(world, tmp_path / "run", weights=tmp_path / "w.safetensors"))


def test_a_folder_that_is_no_run_is_left_alone(world: World, tmp_path: Path) -> None:
    for name in ("pool", "seed"):
        folder = shutil.copytree(world.root / name, tmp_path / name)
        before = sorted(folder.rglob("*"))
        with pytest.raises(Incompatible, match=f"{name}: is not empty and not a run"):
            train.run(config(world, folder))
        assert sorted(folder.rglob("*")) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("")  # who keeps a file there is not kept out
    train.run(config(world, tmp_path / "run", method="supervised", num_steps=1))


def test_a_training_that_diverges_says_so_and_leaves_no_model(world: World, tmp_path: Path) -> None:
    wild = config(world, tmp_path / "run", learning_rate=1e30, precision="fp32")
    with pytest.raises(BadInput, match=r"training diverged by step \d+, .* a learning_rate below 1e\+30"):
        train.run(wild)
    assert not (tmp_path / "run" / "model").exists()


def test_without_a_pool_the_sentence_says_what_to_run(world: World, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="run `curate ingest"):
        train.run(config(world, tmp_path, pool=tmp_path / "nowhere"))


def test_a_labeled_class_the_pool_lacks_and_a_collapse_raise_alarms(world: World, tmp_path: Path) -> None:
    """Random noise as a further class: nothing in the pool looks like it."""
    seed = tmp_path / "seed"
    shutil.copytree(world.seed, seed)
    (seed / "zebra").mkdir()
    for i in range(8):
        noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(seed / "zebra" / f"{i}.png")
    heard: list[str] = []
    settings = config(
        world,
        tmp_path / "run",
        labeled=seed,
        num_steps=60,
        log_every=20,
        method="fixmatch",
        norm_momentum=0.05,
        warmup=0.0,
    )
    summary = train.run(settings, lambda tick: heard.append(tick.note) if tick.note else None)
    assert any("'zebra' is hardly found" in alarm for alarm in heard)
    assert tuple(heard) == summary.alarms


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"dummy_share": 0.001}, "Under 1 %"),
        ({"dummy_share": 0.999}, "Over 99 %"),
        (
            {"dummy_share": 0.3, "pseudo_label_share/0": 0.05, "pseudo_label_share/1": 0.95},
            "collapsed to the class 'b'",
        ),
    ],
)
def test_each_alarm_is_raised_once(figures: dict[str, float], words: str) -> None:
    watch = Watch(Recipe(num_steps=1000), ("a", "b"))
    assert list(watch.check(10, figures)) == []  # nothing is routed yet
    assert [words in alarm for alarm in watch.check(900, figures)] == [True]
    assert list(watch.check(950, figures)) == []


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_calibration_leaves_the_estimated_share_above_the_cut(share: float, world: World, tmp_path: Path) -> None:
    """At the ends, too: a pool that seems clean, and one of which nothing seems real."""
    settings = config(world, tmp_path)
    device, pool = torch.device("cpu"), Pool.open(world.pool)
    rows = Rows.of_pool(pool)
    learner = train_stage._build(settings, settings.recipe(5), tuple("abcde"), len(rows), device, Ranks())
    images = pixels.load(rows, settings.decoder, device, 2, lambda tick: None)
    learner.cut.settle(share, (share, share))
    train_stage._calibrate(learner, images, seed=0)
    with torch.no_grad():
        logits = learner.detector_ema(images.tiles(torch.arange(len(rows))))
    assert (logits >= learner.cut.logit).float().mean().item() == pytest.approx(share, abs=1 / len(rows))
