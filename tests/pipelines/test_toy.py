import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import toy

SIDES = (160, 320)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    toy.make(root, seed=3, num_real=450, alpha=0.5, labels_per_class=4, num_test=10)
    return root


@pytest.fixture(scope="module")
def truth(world: Path) -> dict[str, dict[str, object]]:
    return read_truth(world)


@pytest.fixture(scope="module")
def images(world: Path) -> dict[str, bytes]:
    return read_images(world)


@dataclass(frozen=True)
class Pictures:
    """Pictures of a crawl, and the truth about them."""

    levels: list[np.ndarray]  # (H, W, 3) float32
    synthetic: np.ndarray  # (N,) bool
    cls: np.ndarray  # (N,)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """As many real as synthetic pictures of the sizes of the demo."""
    root = tmp_path_factory.mktemp("large")
    toy.make(root, num_real=80, alpha=1, labels_per_class=1, num_test=0, sides=SIDES)
    images, rows = read_images(root), read_truth(root).values()
    chosen = [row for row in rows if row["kind"] in ("real", "synthetic")]
    levels = [np.asarray(Image.open(io.BytesIO(images[str(row["key"])])), dtype=np.float32) for row in chosen]
    return Pictures(
        levels, np.array([row["is_synthetic"] == 1 for row in chosen]), np.array([row["cls"] for row in chosen])
    )


def read_truth(root: Path) -> dict[str, dict[str, object]]:
    return {row["key"]: row for row in pq.read_table(root / "truth.parquet").to_pylist()}


def read_images(root: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((root / "crawl").glob("*.tar")):
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
        "real": 450, "synthetic": 225, "duplicate": 3, "truncated": 3, "html": 2, "empty": 1,
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


@pytest.mark.slow
def test_real_and_synthetic_pictures_have_the_same_classes_and_sizes(large: Pictures) -> None:
    sizes = np.array([picture.shape[:2] for picture in large.levels])
    assert sizes.min() >= SIDES[0] and sizes.max() <= SIDES[1] and not (sizes % 8).any()
    assert len(np.unique(sizes, axis=0)) > 20
    for side in (large.synthetic, ~large.synthetic):
        assert np.bincount(large.cls[side]).tolist() == [16] * len(toy.CLASSES)
        for name in range(len(toy.CLASSES)):  # every class comes in the same sizes
            of_class = sizes[side & (large.cls == name)]
            assert sorted(map(tuple, of_class)) == sorted(map(tuple, sizes[side & (large.cls == 0)]))
    for length in sizes.T:
        assert 0.35 < auroc(length, large.synthetic) < 0.65


@pytest.mark.slow
def test_no_single_statistic_of_the_pixels_tells_real_from_synthetic(large: Pictures) -> None:
    for scale in (1, 2, 4, 8):
        sharpness = np.array([residual(picture, scale).std() for picture in large.levels])
        assert 0.15 < auroc(sharpness, large.synthetic) < 0.85
    for statistic in (np.mean, np.std):
        values = np.array([statistic(picture) for picture in large.levels])
        assert 0.3 < auroc(values, large.synthetic) < 0.7


def residual(picture_HWC: np.ndarray, scale: int) -> np.ndarray:
    """What the four neighbors leave of each pixel of the gray picture, made `scale` times smaller."""
    gray = picture_HWC.mean(2)
    height, width = (side // scale * scale for side in gray.shape)
    small = gray[:height, :width].reshape(height // scale, scale, width // scale, scale).mean((1, 3))
    neighbors = small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:]
    return small[1:-1, 1:-1] - neighbors / 4


@pytest.mark.slow
@pytest.mark.parametrize(("period", "leaves_trace"), [(2, True), (4, True), (8, True), (3, False), (5, False)])
def test_decoders_leave_their_periods_in_the_spectrum(large: Pictures, period: int, leaves_trace: bool) -> None:
    peaks = np.array([peak(picture, period) for picture in large.levels])
    above = peaks[large.synthetic].mean() - peaks[~large.synthetic].mean()
    assert above > 0.25 if leaves_trace else abs(above) < 0.25


def peak(picture_HWC: np.ndarray, period: int) -> float:
    """Log of by how much a period's amplitude exceeds those of its neighbors, in the means of rows and of columns."""
    gray, found = np.log(picture_HWC.mean(2) + 8), []
    for axis in (0, 1):
        line = gray.mean(1 - axis)
        line = line[: len(line) // 120 * 120]  # whole periods
        amplitude, center = np.abs(np.fft.rfft(line)), len(line) // period
        beside = np.concatenate((amplitude[center - 5 : center - 1], amplitude[center + 2 : center + 6]))
        found.append(np.log(amplitude[center] / np.median(beside)))
    return float(np.mean(found))
