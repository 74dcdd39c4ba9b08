"""Our own parts against the libraries that do the same, in paired runs within one process. Run by hand:

    OMP_NUM_THREADS=1 python tests/bench/libraries.py --images photos.parquet [--column jpg] [--num 2000] [PART ...]

PART is one or more of: jpeg, phash, tar, augment, charts, checkpoint, locks. Without any, all of them are measured.
`docs/decisions.md` says what followed from the figures. Prints one line for each variant: CPU milliseconds of a run
(median), and their ratio to the first variant, taken within each run: median (smallest-largest). A first run of each is
not counted.

`jpeg` also counts the images whose luma or hash differs from Pillow's, `phash` how many bits apart the two hashes are,
and `augment` how many different results each variant gives for 64 copies of one image.
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import imagehash
import matplotlib
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from simplejpeg import decode_jpeg
from torchvision import transforms
from torchvision.transforms import v2

from models import augment
from models.ranks import Rng
from pipelines.images.phash import SIDE, phash
from pipelines.report import charts
from pipelines.run import checkpoint
from pipelines.storage import locks
from pipelines.storage.shards import ShardWriter
from pipelines.storage.tar import read_tar

Variants = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--images", type=Path, required=True, help="parquet file with a column of JPEG files")
    parser.add_argument("--column", default="jpg")
    parser.add_argument("--num", type=int, default=2000, help="images, the first of the file")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    files = pq.read_table(args.images, columns=[args.column])[args.column].to_pylist()[: args.num]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        for part in args.parts or PARTS:
            compare(part, PARTS[part](files, Path(work)), args.runs)


def compare(part: str, variants: Variants, num_runs: int) -> None:
    runs = list[dict[str, float]]()
    for _ in range(num_runs + 1):
        spent = {}
        for name, function in variants.items():
            started = time.process_time()
            function()
            spent[name] = time.process_time() - started
        runs.append(spent)
    first = next(iter(variants))
    for name in variants:
        ratios = [spent[name] / spent[first] for spent in runs[1:]]
        milliseconds = 1000 * statistics.median(spent[name] for spent in runs[1:])
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{part}: {name}: {milliseconds:.2f} ms, ratio {spread}", flush=True)


def jpeg(files: list[bytes], _: Path) -> Variants:
    """Luma at an eighth to full scale, as `pipelines.images.check` decodes it."""

    def by_simplejpeg(content: bytes, width: int, height: int, scale: int) -> Any:
        return decode_jpeg(content, "gray", min_height=-(-height // scale), min_width=-(-width // scale))[..., 0]

    def by_arguments(content: bytes, width: int, height: int, scale: int) -> Any:
        size = (-(-width // scale), -(-height // scale))
        return np.asarray(Image.frombytes("L", size, content, "jpeg", "L", "", scale, 0))

    def by_open(content: bytes, *_: int) -> Any:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.draft("L", (SIDE, SIDE))
            return np.asarray(image.convert("L"))

    sized = list[tuple[bytes, int, int, int]]()
    for content in files:
        with Image.open(io.BytesIO(content)) as image:
            scale = next((scale for scale in (8, 4, 2) if min(image.size) // scale >= SIDE), 1)
            sized.append((content, *image.size, scale))
    lumas = [(by_simplejpeg(*each), by_arguments(*each)) for each in sized]
    num_lumas = sum(not np.array_equal(ours, theirs) for ours, theirs in lumas)
    num_hashes = sum(phash(ours) != phash(theirs) for ours, theirs in lumas)
    print(f"jpeg: of {len(files)} images {num_lumas} differ in their luma, {num_hashes} in their hash")
    functions = {"simplejpeg": by_simplejpeg, "Pillow's decoder arguments": by_arguments, "Image.open": by_open}
    return {name: lambda decode=decode: [decode(*each) for each in sized] for name, decode in functions.items()}


def hashes(files: list[bytes], _: Path) -> Variants:
    images = [Image.open(io.BytesIO(content)).convert("L") for content in files]
    pixels = [np.asarray(image) for image in images]
    bits = [(phash(a) ^ int(str(imagehash.phash(b)), 16)).bit_count() for a, b in zip(pixels, images, strict=True)]
    print(f"phash: {statistics.mean(bits):.3f} of 64 bits apart on average, {max(bits)} at most")
    return {"ours": lambda: [*map(phash, pixels)], "imagehash": lambda: [*map(imagehash.phash, images)]}


def tar(files: list[bytes], work: Path) -> Variants:
    members = [(f"{row:09d}.jpg", content) for row, content in enumerate(files)]

    def write() -> None:
        with ShardWriter(work / "ours.tar") as shard:
            for name, content in members:
                shard.add(name, content)

    def write_by_tarfile() -> None:
        with tarfile.open(work / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    def read() -> int:
        with (work / "ours.tar").open("rb", buffering=1 << 20) as stream:
            return sum(len(member.content) for member in read_tar(stream, 1 << 30))

    def read_by_tarfile() -> int:
        with tarfile.open(work / "ours.tar") as archive:
            return sum(len(archive.extractfile(member).read()) for member in archive)  # type: ignore[union-attr]

    return {"write": write, "write by tarfile": write_by_tarfile, "read": read, "read by tarfile": read_by_tarfile}


def randaugment(*_: Any) -> Variants:
    """Two operations of RandAugment on 448 images of 32 pixels, which is the batch of the default recipe."""
    images = torch.randint(0, 256, (448, 3, 32, 32), dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    rng = Rng(torch.Generator().manual_seed(0))
    of_tensors, of_pictures = v2.RandAugment(2, 9), transforms.RandAugment(2, 9)

    def ours(batch: torch.Tensor = images) -> torch.Tensor:
        for _ in range(2):
            batch = augment.apply(batch, augment.draw(len(batch), rng))
        return batch

    variants: Variants = {
        "ours": ours,
        "torchvision, for each tensor": lambda: [of_tensors(image) for image in images],
        "torchvision, for each PIL image": lambda: [of_pictures(picture) for picture in pictures],
    }
    whole: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"ours": ours, "torchvision": of_tensors}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from kornia.augmentation.auto import RandAugment
    except ImportError:
        pass
    else:
        by_kornia, scaled = RandAugment(n=2, m=9), images.float() / 255
        variants["kornia, for the batch"] = lambda: by_kornia(scaled)
        whole["kornia"] = lambda batch: by_kornia(batch.float() / 255)
    for name, function in whole.items():
        copies = images[:1].repeat(64, 1, 1, 1)
        counts = [len({result.numpy().tobytes() for result in function(copies)}) for _ in range(6)]
        print(f"augment: {name}: different results for 64 copies in one batch, six batches: {counts}")
    return variants


def pages(*_: Any) -> Variants:
    """A histogram of 50 bins and a map of 4,000 points in five groups, as SVG."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    counts, points_N2, group_N = rng.integers(1, 1000, 50), rng.normal(size=(4000, 2)), rng.integers(0, 5, 4000)

    def ours() -> str:
        groups = {f"c{group}": group_N == group for group in range(5)}
        return charts.histogram("h", "", "", counts, 0.5) + charts.points("m", "", "", points_N2, groups)

    def by_matplotlib() -> str:
        text = io.StringIO()
        figure, axes = plt.subplots(figsize=(5, 2.5))
        axes.bar(np.linspace(0, 1, 50), counts / counts.sum(), 0.018)
        figure.savefig(text, format="svg")
        plt.close(figure)
        figure, axes = plt.subplots(figsize=(5, 5))
        for group in range(5):
            axes.scatter(*points_N2[group_N == group].T, s=2)
        figure.savefig(text, format="svg")
        plt.close(figure)
        return text.getvalue()

    print(f"charts: bytes: ours {len(ours()):,}, matplotlib {len(by_matplotlib()):,}")
    return {"ours": ours, "matplotlib": by_matplotlib}


def checkpoints(_: list[bytes], work: Path) -> Variants:
    """52 MB in 200 tensors, written and synced, and read again."""
    tensors, device = {f"w{i}": torch.randn(256, 256) for i in range(200)}, torch.device("cpu")

    def save_by_torch() -> None:
        with (work / "theirs.pt").open("wb") as file:
            torch.save({"tensors": tensors, "state": {"step": 1}}, file)
            file.flush()
            os.fsync(file.fileno())

    return {
        "save": lambda: checkpoint.save(work / "ours.safetensors", tensors, {"step": 1}),
        "torch.save": save_by_torch,
        "load": lambda: checkpoint.load(work / "ours.safetensors", device),
        "torch.load(weights_only=True)": lambda: torch.load(work / "theirs.pt", weights_only=True),
    }


def locking(_: list[bytes], work: Path) -> Variants:
    """A folder locked and released 300 times."""
    folder = work / "locked"
    folder.mkdir()
    (folder / "something").touch()  # else we would remove the folder again

    def repeat(lock: Callable[[], Any]) -> None:
        for _ in range(300):
            with lock():
                pass

    variants: Variants = {
        "ours": lambda: repeat(lambda: locks.held(folder)),
        "filelock": lambda: repeat(lambda: filelock.FileLock(folder / ".lock", timeout=0)),
    }
    variants["filelock"]()
    print(f"locks: left in the folder by filelock: {[path.name for path in folder.glob('.*')]}")
    return variants


PARTS = {
    "jpeg": jpeg,
    "phash": hashes,
    "tar": tar,
    "augment": randaugment,
    "charts": pages,
    "checkpoint": checkpoints,
    "locks": locking,
}

if __name__ == "__main__":
    main()
