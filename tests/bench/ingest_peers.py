"""What an image costs in ingest and in what others use in its place: CPU time without the start of the processes.

    python tests/bench/ingest_peers.py --photos photos-224.parquet [--img2dataset PYTHON] [--runs 3]

Each way takes the same files, few and many of them, in a process that is pinned to one core; what an image costs is the
difference of CPU-seconds by the difference of images, with all processes that are started. The ways take turns. The
files are photographs of 224 pixels of a parquet file with a column `jpg`, and painted ones of 1024 x 683.

    plain loop          webdataset reads tars, Pillow decodes each image, ShardWriter writes it as it is
    rewriting loop      the same, but each image is saved again as JPEG 92, as NeMo Curator's image pipeline does
    img2dataset         as it is (1.47) on files of this disk, no resizing: saved again as JPEG 95 (its default), or
                        with --disable_all_reencoding; PYTHON has it installed
    curate ingest       every check, both hashes, provenance, near-duplicates' hashes, manifest
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from ingest import OURS, PLAIN
from PIL import Image
from sizes import scene

ROOT = Path(__file__).parents[2]
REWRITING = PLAIN.replace(
    """            Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
""",
    """            saved = io.BytesIO()
            Image.open(io.BytesIO(sample["jpg"])).convert("RGB").save(saved, "JPEG", quality=92)
            sample["jpg"] = saved.getvalue()
""",
)
IMG2DATASET = """
import contextlib, io, resource, sys, time
from pathlib import Path
from img2dataset import download
if __name__ == "__main__":
    files = [line for tar in sys.argv[3:] for line in Path(tar).with_suffix(".txt").read_text().split()]
    Path(sys.argv[1], "urls.txt").write_text("\\n".join(files))
    start = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        download(
            url_list=sys.argv[1] + "/urls.txt", output_folder=sys.argv[1] + "/out", output_format="webdataset",
            resize_mode="no", disable_all_reencoding=sys.argv[2] == "keep", processes_count=1, thread_count=4,
            number_sample_per_shard=1000,
        )
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(time.process_time() - start + workers.ru_utime + workers.ru_stime, 0, len(files))
"""


def lay_out(images: Sequence[bytes], folder: Path, per_tar: int) -> list[str]:
    """Write tars of `per_tar` images with .json and .txt, and beside each the list of its images as files."""
    files = folder / "files"
    files.mkdir(parents=True)
    tars = []
    for first in range(0, len(images), per_tar):
        tar_path, urls = folder / f"{first // per_tar:05d}.tar", []
        with tarfile.open(tar_path, "w") as tar:
            for number in range(first, min(first + per_tar, len(images))):
                key, image = f"{number:09d}", images[number]
                comment = b"\xff\xfe" + (len(key) + 2).to_bytes(2, "big") + key.encode()  # no two files are equal
                content = image[:2] + comment + image[2:]
                (files / f"{key}.jpg").write_bytes(content)
                urls.append((files / f"{key}.jpg").as_uri())
                meta = {"key": key, "url": urls[-1], "status": "success"}
                for suffix, data in (("jpg", content), ("json", json.dumps(meta).encode()), ("txt", b"a photo")):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        tar_path.with_suffix(".txt").write_text("\n".join(urls))
        tars.append(str(tar_path))
    return tars


def cpu_seconds(python: str, script: str, arguments: Sequence[str], scratch: Path, expected: int) -> float:
    """CPU-seconds of a script on one core, into a fresh folder; it must have kept all images."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    path = scratch / "way.py"
    path.write_text(script)
    core = max(os.sched_getaffinity(0))
    done = subprocess.run(
        [python, str(path), str(out), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    cpu, _, kept = done.stdout.split()[-3:]
    assert int(kept) == expected, f"{kept} of {expected} images kept"
    return float(cpu)


def compare(name: str, images: Sequence[bytes], few: int, args: argparse.Namespace) -> None:
    """Print a row for each way."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        tars = lay_out(images, scratch / "crawl", few)
        ours = OURS.replace("\nstart", '\nif __name__ != "__main__": sys.exit()\nstart')
        ways: dict[str, tuple[str, str, list[str]]] = {
            "plain loop": (sys.executable, PLAIN, []),
            "rewriting loop": (sys.executable, REWRITING, []),
        }
        if args.img2dataset:
            ways["img2dataset"] = (args.img2dataset, IMG2DATASET, ["save"])
            ways["img2dataset, bytes kept"] = (args.img2dataset, IMG2DATASET, ["keep"])
        ways["curate ingest"] = (sys.executable, ours, [])
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.runs):
            for way, (python, script, options) in ways.items():
                of_few = cpu_seconds(python, script, [*options, tars[0]], scratch, few)
                of_all = cpu_seconds(python, script, [*options, *tars], scratch, len(images))
                found[way].append((of_all - of_few) / (len(images) - few))
        for way, seconds in found.items():
            ratios = [theirs / own for theirs, own in zip(seconds, found["curate ingest"], strict=True)]
            print(
                f"| {name} | {way} | {1e6 * statistics.median(seconds):.0f} µs "
                f"({1e6 * min(seconds):.0f} to {1e6 * max(seconds):.0f}) | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) |",
                flush=True,
            )


def painted(count: int) -> list[bytes]:
    """Photographs of 1024 x 683 pixels as JPEG 90."""
    found = []
    for number in range(count):
        saved = io.BytesIO()
        Image.fromarray(scene(number, 1024, 683)).save(saved, "JPEG", quality=90)
        found.append(saved.getvalue())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--img2dataset", help="interpreter of an environment that has it")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    print("| photographs | way | CPU per image | times that of curate |\n|---|---|---|---|")
    small = pq.read_table(args.photos, columns=["jpg"])["jpg"].to_pylist()
    compare("224 px", small * 4, len(small), args)
    compare("1024 px", painted(100) * 4, 100, args)


if __name__ == "__main__":
    main()
