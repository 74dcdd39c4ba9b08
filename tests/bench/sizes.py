"""What images of 1 to 50 megapixels cost: CPU time and memory of ingest, and of reading their features.

    python tests/bench/sizes.py

paints photographs of each size (camera noise over smooth scenes, JPEG 90, 3:2), ingests them with one process, and
reads their features with one thread, each in a process of its own. It prints a Markdown table of CPU-seconds for an
image and peak memory. CPU-seconds, unlike wall time, hardly depend on what else the machine does.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from models.frozen import Frozen
from pipelines import ingest
from pipelines.compute import devices
from pipelines.ingest import IngestConfig
from pipelines.pool.features import FeatureReader, FeatureStore
from pipelines.pool.manifest import Pool
from pipelines.run import weights

MEGAPIXELS = (1, 4, 12, 24, 50)
IMAGES = 24


def paint(folder: Path, megapixels: int) -> float:
    """Write IMAGES photographs; their mean size in megabytes."""
    folder.mkdir()
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(1.5 * height)
    for number in range(IMAGES):
        Image.fromarray(scene(number, width, height)).save(folder / f"{number}.jpg", quality=90)
    return sum(path.stat().st_size for path in folder.iterdir()) / IMAGES / 1e6


def scene(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) of a smooth scene with camera noise."""
    rng = np.random.default_rng(number)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = rng.normal(0, 4, (height, width)).astype(np.float32)[..., None]
    return (np.asarray(smooth, dtype=np.float32) + noise).clip(0, 255).astype(np.uint8)


def step(name: str, folder: Path) -> None:
    """Do one step on the images in `folder`, and print its CPU-seconds for an image and its peak memory in GB."""
    torch.set_num_threads(1)
    devices.keep_freed_memory(torch.device("cpu"))
    if name == "ingest":
        config = IngestConfig(sources=(str(folder / "crawl"),), pool=folder / "pool", jobs=1)
        started = time.process_time()
        ingest.run(config)
    else:
        autocast = devices.autocast("auto", torch.device("cpu"))
        tensors = weights.embedded_weights(weights.EMBEDDED) or {}
        reader = FeatureReader(Frozen(weights.EMBEDDED, tensors, 224, autocast), 4, 2)
        store = FeatureStore(Pool.open(folder / "pool"), reader)
        started = time.process_time()
        assert sum(len(views.tiles) for _, views in store.shards()) == IMAGES
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = time.process_time() - started + children.ru_utime + children.ru_stime
    print(seconds / IMAGES, max(own.ru_maxrss, children.ru_maxrss) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", nargs=2, metavar=("NAME", "FOLDER"), help="one step of one size, for a child process")
    given = parser.parse_args()
    if given.step:
        step(given.step[0], Path(given.step[1]))
        return
    print("| image | ingest | its peak | features | their peak |\n|---|---|---|---|---|")
    for megapixels in MEGAPIXELS:
        with tempfile.TemporaryDirectory() as work:
            megabytes = paint(Path(work, "crawl"), megapixels)
            cells = [f"{megapixels} MP, {megabytes:.1f} MB"]
            for name in ("ingest", "features"):
                child = [sys.executable, __file__, "--step", name, work]
                done = subprocess.run(child, capture_output=True, text=True, check=True)
                seconds, gigabytes = (float(value) for value in done.stdout.split())
                cells += [f"{seconds:.2f} s", f"{gigabytes:.2f} GB"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
