"""A tiny matrix on the toy world, through the real stages; the same lines however it was interrupted."""

import csv
import shutil
from pathlib import Path

import pytest

from pipelines import benchmark
from pipelines.benchmark.methods import METHODS, merged
from pipelines.errors import BadInput, Incompatible
from pipelines.train import config as train_config
from tests.conftest import World
from tests.pipelines.benchmark.matrices import CLASSES, TRAIN, config, lines
from tests.warm import python


def test_a_matrix_leaves_lines_table_and_figures(whole: Path) -> None:
    fixmatch, rsmatch = lines(whole)
    assert fixmatch["method"] == "fixmatch"
    assert {"accuracy", "pseudo_label_accuracy_real", "series", "settings"} <= set(fixmatch)
    assert {"accuracy_dummy", "detector_auroc", "detector_auroc_color", "queue_purity"} <= set(rsmatch)
    assert {"held_out_auroc", "held_out_auroc_by_class", "share_synthetic"} <= set(rsmatch)
    assert set(rsmatch["held_out_auroc_by_class"]) == set(CLASSES)
    assert [point["step"] for point in rsmatch["series"]] == [4, 8]
    with (whole / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["fixmatch", "rsmatch"]
    difference = rsmatch["accuracy"] - fixmatch["accuracy"]
    assert float(rows[1]["minus_fixmatch"]) == pytest.approx(difference)
    assert f"{100 * difference:+.1f}" in (whole / "table.md").read_text()
    for name in ("accuracy", "steps"):
        assert (whole / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (whole / f"{name}.svg").read_text()
    assert not (whole / "differences.svg").exists()  # one pair has no interval
    assert not (whole / "mixtures").exists()  # they can be made again


def test_a_resumed_matrix_gives_the_lines_of_an_uninterrupted_one(
    world: World, sources: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed after its first line, with half of the next one written."""
    code = (
        "import json, os, sys; from pipelines import benchmark; from pipelines.benchmark import BenchmarkConfig\n"
        "config = BenchmarkConfig.model_validate_json(sys.argv[1])\n"
        "benchmark.run(config, lambda tick: os.kill(os.getpid(), 9))\n"
    )
    settings = config(world, sources, tmp_path)
    done = python("-c", code, settings.model_dump_json())
    assert done.returncode == -9
    assert len(lines(tmp_path)) == 1
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"method": "rsm')
    assert benchmark.run(settings).num_on_record == 1
    assert lines(tmp_path) == lines(whole)
    assert benchmark.run(settings).num_on_record == 2


def test_what_was_made_by_other_settings_is_not_gone_on_with(world: World, sources: Path, tmp_path: Path) -> None:
    """A kill before the first line leaves the world and half of a run of the settings of then."""
    code = (
        "import os, sys; from pipelines import benchmark, train; from pipelines.benchmark import BenchmarkConfig\n"
        "run = train.run\n"
        "train.run = lambda settings: run(settings, lambda tick: tick.unit == 'steps' and os.kill(os.getpid(), 9))\n"
        "benchmark.run(BenchmarkConfig.model_validate_json(sys.argv[1]))\n"
    )
    before = config(world, sources, tmp_path, methods=("fixmatch",), num_test=10)
    done = python("-c", code, before.model_dump_json())
    assert done.returncode == -9
    assert (tmp_path / "mixtures").exists() and (tmp_path / "runs").exists()
    benchmark.run(config(world, sources, tmp_path, methods=("fixmatch",), size=16))
    (record,) = lines(tmp_path)
    benchmark.run(config(world, sources, tmp_path / "anew", methods=("fixmatch",), size=16))
    assert [record] == lines(tmp_path / "anew")


def test_what_is_named_twice_is_run_once(world: World, sources: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "results.jsonl", tmp_path)
    twice = config(world, sources, tmp_path, methods=("fixmatch", "rsmatch", "fixmatch"), labels=(20, 20))
    summary = benchmark.run(twice)
    assert (summary.num_runs, summary.num_on_record) == (2, 2)
    assert lines(tmp_path) == lines(whole)


def test_all_methods_of_a_world_start_from_one_network(world: World, sources: Path, tmp_path: Path) -> None:
    settings = config(
        world, sources, tmp_path, methods=("supervised", "fixmatch", "rsmatch-oracle"), learning_rates=(1e-12,),
        train=merged(TRAIN, {"recipe": {"num_steps": 1, "ema_decay": 0.0, "norm_momentum": 1e-12}}), start=TRAIN,
    )  # fmt: skip
    rows = benchmark.run(settings).table
    assert len({row["accuracy"] for row in rows}) == 1
    assert [record["settings"]["start"]["recipe"]["num_steps"] for record in lines(tmp_path)] == [8, 8, 8]


def test_results_of_other_settings_are_not_mixed(world: World, sources: Path, whole: Path) -> None:
    with pytest.raises(Incompatible, match="other settings \\(train\\)"):
        benchmark.run(config(world, sources, whole, train=merged(TRAIN, {"recipe": {"num_steps": 9}})))


def test_results_from_before_a_method_was_changed_are_not_mixed(
    world: World, sources: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_config, "DETECTOR_REVISION", train_config.DETECTOR_REVISION + 1)
    with pytest.raises(Incompatible, match=r"has runs of rsmatch from before that method was changed\. Remove"):
        benchmark.run(config(world, sources, whole))
    fixmatch, _ = (whole / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text(fixmatch + "\n")  # has no detector
    assert benchmark.run(config(world, sources, tmp_path, methods=("fixmatch",))).num_on_record == 1
    monkeypatch.delitem(METHODS, "fixmatch")
    with pytest.raises(Incompatible, match="has runs of fixmatch"):
        benchmark.run(config(world, sources, tmp_path, methods=("rsmatch",)))


def test_the_order_in_which_classes_are_named_changes_nothing(world: World, sources: Path, tmp_path: Path) -> None:
    settings = {"methods": ("supervised",), "train": merged(TRAIN, {"recipe": {"num_steps": 2}})}
    benchmark.run(config(world, sources, tmp_path, classes=("triangle", "disc"), **settings))
    assert benchmark.run(config(world, sources, tmp_path, classes=("disc", "triangle"), **settings)).num_on_record == 1


OTHER_METHODS = tuple(sorted(set(METHODS) - {"fixmatch", "rsmatch"}))


@pytest.fixture(scope="module")
def others(world: World, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> benchmark.Summary:
    """One short run of each method that `whole` leaves out."""
    settings = config(
        world, sources, tmp_path_factory.mktemp("others"), methods=OTHER_METHODS, num_real=(50,), num_test=10,
        train=merged(TRAIN, {"recipe": {"num_steps": 4}}),
    )  # fmt: skip
    return benchmark.run(settings)


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_every_method_runs(method: str, others: benchmark.Summary) -> None:
    record = others.table[OTHER_METHODS.index(method)]
    assert record["method"] == method
    assert 0 <= record["accuracy"] <= 1


def test_photographs_that_are_none_are_said_before_anything_is_trained(
    world: World, sources: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="nowhere"):
        benchmark.run(config(world, sources, tmp_path / "out", photographs=tmp_path / "nowhere"))
    assert not (tmp_path / "out" / "mixtures").exists()


def test_too_few_images_are_said_before_anything_is_trained(world: World, sources: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"need \d+ synthetic images of 'cross', found \d+\. Lower"):
        benchmark.run(config(world, sources, tmp_path, alphas=(3.0,)))


def test_a_matrix_over_rates_and_numbers_of_real_images(world: World, sources: Path, tmp_path: Path) -> None:
    settings = config(
        world, sources, tmp_path, methods=("fixmatch",), num_real=(50, 100), learning_rates=(1e-9, 0.03),
        train=merged(TRAIN, {"recipe": {"num_steps": 2}}),
    )  # fmt: skip
    summary = benchmark.run(settings)
    assert [(line["num_real"], line["learning_rate"]) for line in lines(tmp_path)] == [
        (50, 1e-9), (50, 0.03), (100, 1e-9), (100, 0.03),
    ]  # fmt: skip
    assert [row["num_real"] for row in summary.table] == [50, 100]
    assert benchmark.run(settings).num_on_record == 4
