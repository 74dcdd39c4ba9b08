import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import toy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    toy.make(root, seed=3, num_real=450, alpha=0.5, labels_per_class=4, num_test=10)
    return root


@pytest.fixture(scope="module")
def truth(world: Path) -> dict[str, dict[str, object]]:
    return {row["key"]: row for row in pq.read_table(world / "truth.parquet").to_pylist()}


@pytest.fixture(scope="module")
def images(world: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((world / "crawl").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[member.name.removesuffix(".jpg")] = file.read()
    return found


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    rank = score.argsort().argsort() + 1
    num = positive.sum()
    return float((rank[positive].sum() - num * (num + 1) / 2) / (num * (~positive).sum()))


def test_same_arguments_same_bytes(world: Path, tmp_path: Path) -> None:
    toy.make(tmp_path, seed=3, num_real=450, alpha=0.5, labels_per_class=4, num_test=10)
    assert digests(tmp_path) == digests(world)


def test_another_seed_is_another_world(world: Path, tmp_path: Path) -> None:
    toy.make(tmp_path, seed=4, num_real=10, labels_per_class=4, num_test=10)
    ours, theirs = digests(tmp_path), digests(world)
    assert all(ours[name] != theirs[name] for name in ours if name.startswith(("seed/", "test/")))


def test_shards_are_laid_out_as_img2dataset_leaves_them(world: Path) -> None:
    for tar_path in sorted((world / "crawl").glob("*.tar")):
        stats = json.loads(tar_path.with_name(f"{tar_path.stem}_stats.json").read_text())
        rows = pq.read_table(tar_path.with_suffix(".parquet")).to_pylist()
        with tarfile.open(tar_path) as tar:
            names = tar.getnames()
            stems = [name.split(".")[0] for name in names[::3]]
            sidecars = {name: json.loads(tar.extractfile(name).read()) for name in names[1::3]}  # type: ignore[union-attr]
        assert names == [f"{stem}.{suffix}" for stem in stems for suffix in ("jpg", "json", "txt")]
        assert stems != sorted(stems)  # completion order
        assert stats["successes"] == len(stems)
        assert stats["count"] == len(rows)
        assert {row["key"] for row in rows if row["status"] == "success"} == set(stems)
        assert next(row["key"] for row in rows if row["status"] != "success") not in stems
        assert all(sidecar["key"] == name.split(".")[0] for name, sidecar in sidecars.items())


def test_truth_tells_every_file(truth: dict[str, dict[str, object]], images: dict[str, bytes]) -> None:
    assert set(truth) == set(images)
    kinds = [row["kind"] for row in truth.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "real": 450, "synthetic": 225, "duplicate": 3, "truncated": 3, "html": 1,
    }  # fmt: skip
    for key, row in truth.items():
        if row["kind"] in ("real", "synthetic", "duplicate"):
            assert row["is_synthetic"] == (row["kind"] == "synthetic") or row["kind"] == "duplicate"
            assert row["cls"] in range(len(toy.CLASSES))
            assert Image.open(io.BytesIO(images[key])).size == (toy.SIZE, toy.SIZE)
        else:
            assert row["is_synthetic"] == row["cls"] == -1


def test_the_labeled_and_the_test_images_are_not_in_the_crawl(world: Path, images: dict[str, bytes]) -> None:
    apart = [path.read_bytes() for part in ("seed", "test") for path in (world / part).glob("*/*.jpg")]
    assert len(apart) == 4 * len(toy.CLASSES) + 10
    assert not set(apart) & set(images.values())


def test_the_file_does_not_tell_real_from_synthetic(
    truth: dict[str, dict[str, object]], images: dict[str, bytes]
) -> None:
    keys = [key for key, row in truth.items() if row["kind"] in ("real", "synthetic")]
    synthetic = np.array([truth[key]["is_synthetic"] for key in keys], dtype=bool)
    opened = [Image.open(io.BytesIO(images[key])) for key in keys]
    assert len({json.dumps(image.quantization) for image in opened}) == 1  # type: ignore[attr-defined]
    num_bytes = np.array([len(images[key]) for key in keys])
    means_NC = np.array([np.asarray(image).mean(axis=(0, 1)) for image in opened])
    for easy in (num_bytes, *means_NC.T):
        assert 0.3 < auroc(easy, synthetic) < 0.7
