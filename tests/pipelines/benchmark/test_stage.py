"""A tiny matrix on the toy world, through the real stages; the same lines however it was interrupted."""

import csv
import json
import math
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from models import rsmatch
from pipelines import benchmark
from pipelines.benchmark import BenchmarkConfig, plots, pools, table
from pipelines.benchmark import sources as image_sources
from pipelines.benchmark import stage as benchmark_stage
from pipelines.errors import BadInput, Incompatible
from pipelines.pool.manifest import Pool, read_parquet
from tests.conftest import World
from tests.warm import python

CLASSES = ("cross", "disc", "square", "stripes", "triangle")
TRAIN = {
    "backbone": "small",
    "num_steps": 8,
    "batch_size": 8,
    "unlabeled_ratio": 2,
    "warmup": 0.25,
    "evaluate_every": 4,
    "log_every": 4,
    "checkpoint_every": 4,
    "device": "cpu",
}


CELL = {
    "contamination": "balanced", "num_real": 200, "alpha": 0.5, "labels": 250, "learning_rate": 0.01, "seconds": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy crawl's pictures as a folder per class, real and synthetic apart."""
    root = tmp_path_factory.mktemp("sources")
    facts = {row["key"]: row for row in read_parquet(world.truth).to_pylist()}
    for shard in sorted((world.root / "crawl").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                row = facts[member.name.split(".")[0]]
                if member.name.endswith(".jpg") and row["kind"] in ("real", "synthetic"):
                    target = root / row["kind"] / CLASSES[row["cls"]] / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())
    return root


def config(world: World, sources: Path, out: Path, **changes: Any) -> BenchmarkConfig:
    settings: dict[str, Any] = {
        "real": sources / "real", "synthetic": sources / "synthetic", "test": world.test, "out": out,
        "methods": ("fixmatch", "rsmatch"), "labels": (20,), "seeds": 1, "num_real": (200,), "num_test": 50,
        "train": TRAIN,
    }  # fmt: skip
    return BenchmarkConfig(**(settings | changes))


def lines(out: Path) -> list[dict[str, Any]]:
    """Records without what a clock decides."""
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "steps_per_second")} for record in records]


@pytest.fixture(scope="module")
def whole(world: World, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    summary = benchmark.run(config(world, sources, out))
    assert (summary.num_runs, summary.num_on_record) == (2, 0)
    return out


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
    assert not (whole / "worlds").exists()  # they can be made again


def test_of_a_clean_pool_it_says_what_the_detector_invents(world: World, sources: Path, tmp_path: Path) -> None:
    benchmark.run(config(world, sources, tmp_path, methods=("rsmatch",), alphas=(0.0,)))
    (record,) = lines(tmp_path)
    assert {"detector_flagged", "share_synthetic", "share_interval", "held_out_auroc"} <= set(record)
    assert "detector_auroc" not in record


def test_differences_are_drawn_where_there_are_pairs(tmp_path: Path) -> None:
    cell = CELL | {"labels": 20, "series": []}
    accuracy = {"fixmatch": (0.5, 0.6), "rsmatch": (0.6, 0.65), "supervised": (0.4,)}
    records = [
        cell | {"method": method, "seed": seed, "accuracy": value}
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    drawn = plots.draw(tmp_path, [records[0] | {"series": [{"step": 1, "accuracy": 0.5}]}], table.summarize(records))
    assert tmp_path / "differences.svg" in drawn
    text = (tmp_path / "differences.svg").read_text()
    assert "rsmatch (2)" in text
    assert "supervised" not in text
    first = [path.read_bytes() for path in drawn]
    plots.draw(tmp_path, [records[0] | {"series": [{"step": 1, "accuracy": 0.5}]}], table.summarize(records))
    assert [path.read_bytes() for path in drawn] == first


def test_figures_are_of_what_can_be_compared(tmp_path: Path) -> None:
    """A cell of one method has no panel of accuracies; steps are of one cell, the one with most runs."""
    accuracy = {(20, "fixmatch"): 0.5, (20, "rsmatch"): 0.6, (40, "rsmatch"): 0.7}
    records = [
        CELL | {"labels": labels, "method": method, "seed": 0, "accuracy": value}
        | {"series": [{"step": 1, "accuracy": value}]}
        for (labels, method), value in accuracy.items()
    ]  # fmt: skip
    plots.draw(tmp_path, records, table.summarize(records))
    for name in ("accuracy", "steps"):
        text = (tmp_path / f"{name}.svg").read_text()
        assert "20 labels" in text
        assert "40 labels" not in text


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
    assert (tmp_path / "worlds").exists() and (tmp_path / "runs").exists()
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
        train=TRAIN | {"num_steps": 1, "ema_decay": 0.0, "norm_momentum": 1e-12}, start=TRAIN,
    )  # fmt: skip
    rows = benchmark.run(settings).table
    assert len({row["accuracy"] for row in rows}) == 1
    assert [record["settings"]["start"]["num_steps"] for record in lines(tmp_path)] == [8, 8, 8]


def test_photographs_are_judged_by_how_they_were_scaled(world: World, sources: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs" / "any"
    photographs.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(photographs / f"{i}.png")
    settings = config(world, sources, tmp_path / "out", methods=("rsmatch",), photographs=photographs.parent)
    benchmark.run(settings)
    (record,) = lines(tmp_path / "out")
    assert set(record["scaled_photographs"]) == {"lanczos", "bicubic", "box", "bilinear"}
    assert all(share in (0, 0.3333, 0.6667, 1) for share in record["scaled_photographs"].values())


def test_results_of_other_settings_are_not_mixed(world: World, sources: Path, whole: Path) -> None:
    with pytest.raises(Incompatible, match="other settings \\(train\\)"):
        benchmark.run(config(world, sources, whole, train=TRAIN | {"num_steps": 9}))


def test_results_from_before_a_method_was_changed_are_not_mixed(
    world: World, sources: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rsmatch, "DETECTOR_REVISION", rsmatch.DETECTOR_REVISION + 1)
    with pytest.raises(Incompatible, match="has runs of rsmatch from before that method was changed; remove"):
        benchmark.run(config(world, sources, whole))
    fixmatch, _ = (whole / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text(fixmatch + "\n")  # has no detector
    assert benchmark.run(config(world, sources, tmp_path, methods=("fixmatch",))).num_on_record == 1
    monkeypatch.delitem(benchmark_stage.METHODS, "fixmatch")
    with pytest.raises(Incompatible, match="has runs of fixmatch"):
        benchmark.run(config(world, sources, tmp_path, methods=("rsmatch",)))


def test_the_order_in_which_classes_are_named_changes_nothing(world: World, sources: Path, tmp_path: Path) -> None:
    settings = {"methods": ("supervised",), "train": TRAIN | {"num_steps": 2}}
    benchmark.run(config(world, sources, tmp_path, classes=("triangle", "disc"), **settings))
    assert benchmark.run(config(world, sources, tmp_path, classes=("disc", "triangle"), **settings)).num_on_record == 1


OTHER_METHODS = tuple(sorted(set(benchmark_stage.METHODS) - {"fixmatch", "rsmatch"}))


@pytest.fixture(scope="module")
def others(world: World, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> benchmark.Summary:
    """One short run of each method that `whole` leaves out."""
    settings = config(
        world, sources, tmp_path_factory.mktemp("others"), methods=OTHER_METHODS, num_real=(50,), num_test=10,
        train=TRAIN | {"num_steps": 4},
    )  # fmt: skip
    return benchmark.run(settings)


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_every_method_runs(method: str, others: benchmark.Summary) -> None:
    record = others.table[OTHER_METHODS.index(method)]
    assert record["method"] == method
    assert 0 <= record["accuracy"] <= 1


# Worlds.


def build(  # type: ignore[no-untyped-def]
    sources: Path,
    world: World,
    folder: Path,
    *,
    num_real: int = 200,
    labels: int = 20,
    alpha: float = 0.5,
    spec: str = "balanced",
    classes: tuple[str, ...] | None = None,
):
    found = pools.Sources.read(sources / "real", sources / "synthetic", world.test, None)
    pools.build(folder, pools.World(spec, num_real, alpha, labels, 0), found, num_test=50, task_classes=classes)
    truth = {row["key"]: row for row in read_parquet(folder / "truth.parquet").to_pylist()}
    members = [
        name.split(".")[0] for table in Pool(folder / "pool").tables(["member"]) for name in table["member"].to_pylist()
    ]
    return truth, members


def test_a_world_holds_what_it_says(sources: Path, world: World, tmp_path: Path) -> None:
    truth, members = build(sources, world, tmp_path)
    assert sorted(truth) == sorted(members)
    assert Counter(row["is_synthetic"] for row in truth.values()) == {0: 200, 1: 100}
    assert set(Counter(row["cls"] for row in truth.values()).values()) == {60}
    real_only = [name for table in Pool(tmp_path / "real").tables(["member"]) for name in table["member"].to_pylist()]
    assert sorted(name.split(".")[0] for name in real_only) == sorted(key for key in truth if key.startswith("real-"))
    seed = [path.stem for path in (tmp_path / "seed").rglob("*.jpg")]
    assert len(seed) == 20
    assert not {f"real-{stem}" for stem in seed} & set(truth)
    assert read_parquet(tmp_path / "held_out.parquet").num_rows == 5 * 40  # 60 of each class, 20 in the pool


def test_worlds_of_a_seed_share_their_images(sources: Path, world: World, tmp_path: Path) -> None:
    few, _ = build(sources, world, tmp_path / "few", alpha=0.1)
    many, _ = build(sources, world, tmp_path / "many", alpha=0.5)
    assert set(few) < set(many)


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ("balanced", [20, 20, 20, 20, 20]),
        ("imbalanced", [100, 0, 0, 0, 0]),
        ("imbalanced:0.5", [60, 10, 10, 10, 10]),
        ("off-class", [0, 0, 0, 50, 50]),
        ("low-quality", [20, 20, 20, 20, 20]),
    ],
)
def test_contaminations_say_which_classes_are_synthetic(spec: str, counts: list[int]) -> None:
    contamination = pools.Contamination.parse(spec)
    num_task = len(contamination.task(CLASSES, None))
    assert contamination.counts(100, 5, num_task).tolist() == counts


def test_off_class_images_are_of_no_class_of_the_task(sources: Path, world: World, tmp_path: Path) -> None:
    truth, _ = build(sources, world, tmp_path, alpha=0.3, spec="off-class", labels=18)
    assert {row["cls"] for row in truth.values() if row["is_synthetic"]} == {3, 4}
    assert sorted(path.name for path in (tmp_path / "seed").iterdir()) == list(CLASSES[:3])
    assert {row["cls"] for row in truth.values() if not row["is_synthetic"]} == {0, 1, 2}


def test_a_task_of_named_classes(sources: Path, world: World, tmp_path: Path) -> None:
    named = ("triangle", "disc")
    truth, members = build(
        sources, world, tmp_path, num_real=80, labels=8, alpha=1.0, spec="off-class:0.5", classes=named
    )
    assert sorted(truth) == sorted(members)
    for part in ("seed", "test"):
        assert sorted(path.name for path in (tmp_path / part).iterdir()) == ["disc", "triangle"]
    # As the folders are numbered: disc 0, triangle 1, and then the others.
    of_class = {
        name: {f"{kind}-{i:07d}" for kind, source in enumerate_sources(sources) for i in rows_of(source, name)}
        for name in CLASSES
    }
    numbers = ("disc", "triangle", "cross", "square", "stripes")
    assert all(key in of_class[numbers[row["cls"]]] for key, row in truth.items())
    kinds = Counter((row["is_synthetic"], row["cls"]) for row in truth.values())
    assert kinds == {(0, 0): 40, (0, 1): 40, (1, 0): 20, (1, 1): 20, (1, 2): 13, (1, 3): 13, (1, 4): 13}


def enumerate_sources(sources: Path) -> list[tuple[str, image_sources.Source]]:
    return [(kind, image_sources.read(sources / kind)) for kind in ("real", "synthetic")]


def rows_of(source: image_sources.Source, name: str) -> list[int]:
    return np.flatnonzero(source.labels == source.classes.index(name)).tolist()


def test_a_task_that_cannot_be_is_refused(sources: Path, world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'circle': is none of the images' classes, cross, disc"):
        build(sources, world, tmp_path, classes=("disc", "circle"))
    with pytest.raises(BadInput, match="none is left to contaminate"):
        build(sources, world, tmp_path, spec="off-class", classes=CLASSES)


@pytest.mark.parametrize("spec", ["odd", "imbalanced:0", "imbalanced:2", "balanced:x"])
def test_a_contamination_that_is_none_is_refused(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, contaminations=(spec,))


@pytest.mark.parametrize("part", ["start", "train"])
def test_a_setting_of_training_that_is_none_is_refused(part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_step: Extra inputs are not permitted"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, **{part: {"num_step": 5}})


def test_photographs_that_are_none_are_said_before_anything_is_trained(
    world: World, sources: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="nowhere"):
        benchmark.run(config(world, sources, tmp_path / "out", photographs=tmp_path / "nowhere"))
    assert not (tmp_path / "out" / "worlds").exists()


def test_too_few_images_are_said_before_anything_is_trained(world: World, sources: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="synthetic images of 'cross' are needed"):
        benchmark.run(config(world, sources, tmp_path, alphas=(3.0,)))


# Statistics.


def test_interval_is_the_t_interval_of_paired_differences() -> None:
    differences = [0.01, 0.03, -0.005]
    expected = stats.t.interval(0.95, 2, loc=np.mean(differences), scale=stats.sem(differences))
    assert table.interval(differences) == pytest.approx(expected)
    assert all(math.isnan(end) for end in table.interval([0.1]))


def test_table_pairs_by_seed() -> None:
    accuracies = {
        "fixmatch": (0.5, 0.6, 0.4),
        "fixmatch-real": (0.45, 0.65),
        "rsmatch": (0.52, 0.63, 0.41),
        "rsmatch-oracle-discard": (0.51, 0.6, 0.41),
    }
    records = [
        CELL | {"method": m, "seed": i, "accuracy": a} for m, row in accuracies.items() for i, a in enumerate(row)
    ]
    del records[0]["seconds"]  # it was cut short
    rows = table.summarize(records)
    fixmatch, real_only, rsmatch, _ = rows
    assert fixmatch["minus_fixmatch"] == 0
    assert rsmatch["minus_fixmatch"] == pytest.approx(0.02)
    assert rsmatch["accuracy_std"] == pytest.approx(np.std(accuracies["rsmatch"], ddof=1))
    assert rsmatch["minus_fixmatch_low"] < 0.02 < rsmatch["minus_fixmatch_high"]
    assert real_only["minus_fixmatch"] == pytest.approx(0)
    assert rsmatch["minus_fixmatch_real"] == pytest.approx(0.025)  # of the two seeds that both have
    assert rsmatch["minus_rsmatch_oracle_discard"] == pytest.approx(0.04 / 3)
    assert math.isnan(rsmatch["detector_auroc"])
    shown = table.shown(rows)
    assert shown[2]["minus FixMatch (95 %)"] == "+2.0 (-0.5 to +4.5)"
    assert shown[3]["minus discarding by truth (95 %)"] == ""  # of itself
    assert [row["seconds"] for row in shown] == ["1"] * 4  # of the runs that were not cut short
    assert "AUROC (worst)" not in shown[0]  # there is none
    assert "minus discarding by truth (95 %)" not in table.shown(table.summarize(records[:5]))[0]


def test_each_method_is_judged_at_its_best_rate() -> None:
    accuracy = {
        ("fixmatch", 0.01): (0.5, 0.5),
        ("fixmatch", 0.02): (0.4, 0.7),  # the highest mean
        ("fixmatch", 0.04): (0.9,),  # of one lucky seed
        ("rsmatch", 0.01): (0.6, 0.6),
        ("rsmatch", 0.02): (0.5, 0.6),
    }
    runs = [
        CELL | {"method": method, "learning_rate": rate, "seed": seed, "accuracy": value}
        for (method, rate), values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    best = table.at_best_rates(runs)
    assert [(run["method"], run["learning_rate"]) for run in best] == [("fixmatch", 0.02)] * 2 + [("rsmatch", 0.01)] * 2
    elsewhere = [run | {"alpha": 1.0} for run in runs if run["learning_rate"] == 0.01]
    assert {run["learning_rate"] for run in table.at_best_rates(runs + elsewhere) if run["alpha"] == 1.0} == {0.01}


def test_a_matrix_over_rates_and_numbers_of_real_images(world: World, sources: Path, tmp_path: Path) -> None:
    settings = config(
        world, sources, tmp_path, methods=("fixmatch",), num_real=(50, 100), learning_rates=(1e-9, 0.03),
        train=TRAIN | {"num_steps": 2},
    )  # fmt: skip
    summary = benchmark.run(settings)
    assert [(line["num_real"], line["learning_rate"]) for line in lines(tmp_path)] == [
        (50, 1e-9), (50, 0.03), (100, 1e-9), (100, 0.03),
    ]  # fmt: skip
    assert [row["num_real"] for row in summary.table] == [50, 100]
    assert benchmark.run(settings).num_on_record == 4


@pytest.mark.parametrize("odd", [{"alphas": (-1.0,)}, {"labels": (0,)}, {"num_real": (0,)}, {"learning_rates": (0.0,)}])
def test_a_matrix_that_cannot_be_is_refused(odd: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="greater than"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, **odd)


def test_a_clean_pool_is_nothing_for_nnpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nnPU can learn nothing from a clean pool"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, methods=("rsmatch-nnpu",), alphas=(0.5, 0))


def test_a_learning_rate_among_the_settings_of_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give it as learning_rates"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, train={"learning_rate": 0.1})
