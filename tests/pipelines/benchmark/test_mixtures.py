from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.benchmark import mixtures
from pipelines.benchmark import sources as image_sources
from pipelines.errors import BadInput
from pipelines.pool.manifest import Pool, read_parquet
from tests.conftest import World
from tests.pipelines.benchmark.matrices import CLASSES


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
    found = image_sources.Sources.read(sources / "real", sources / "synthetic", world.test, None)
    mixtures.build(folder, mixtures.Mixture(spec, num_real, alpha, labels, 0), found, num_test=50, task_classes=classes)
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
    contamination = mixtures.Contamination.parse(spec)
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
    with pytest.raises(BadInput, match=r"no images of the class 'circle'\. Name some of cross, disc"):
        build(sources, world, tmp_path, classes=("disc", "circle"))
    with pytest.raises(BadInput, match="none is left to contaminate"):
        build(sources, world, tmp_path, spec="off-class", classes=CLASSES)
