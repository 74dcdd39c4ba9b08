"""Ingest against the plain loop that it replaces, one core each, and its memory. Run by hand:

    python tests/bench/ingest.py --photos photos-224.parquet --crawl crawl/ [--runs 7]

The plain loop reads the same tars with `webdataset`, decodes each image fully with Pillow and writes it with
`ShardWriter`; it hashes nothing, looks for no duplicates and keeps no manifest. Runs alternate, each in a fresh process
pinned to one core, timed from after its imports, but with all of the process that ours starts for its decoders; CPU
seconds are the figure to trust on a busy machine. `--photos` is a parquet file with a column `jpg`, laid out five times
as tars of 1000 samples; `--crawl` a folder of at least 30 shards of 1000 small images.
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
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
REPEATS = 5  # of the photographs

OURS = """
import resource, sys, time
from pathlib import Path
from pipelines.ingest import IngestConfig, run, stage  # the stage with what it imports
start = time.process_time(), time.perf_counter()
summary = run(IngestConfig(sources=tuple(sys.argv[2:]), pool=Path(sys.argv[1]), jobs=1))
worker = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.process_time() - start[0] + worker.ru_utime + worker.ru_stime, time.perf_counter() - start[1], summary.kept)
"""

PLAIN = """
import io, sys, time
import webdataset
from PIL import Image
start = time.process_time(), time.perf_counter()
kept = 0
with webdataset.ShardWriter(sys.argv[1] + "/%05d.tar", maxcount=1000, verbose=0) as sink:
    for sample in webdataset.WebDataset(sys.argv[2:], shardshuffle=False, empty_check=False):
        try:
            Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        except OSError:
            continue
        sink.write({name: value for name, value in sample.items() if name in ("__key__", "jpg", "json", "txt")})
        kept += 1
print(time.process_time() - start[0], time.perf_counter() - start[1], kept)
"""


def lay_out(photos: Path, folder: Path) -> list[str]:
    """Write the photographs as img2dataset would, each copy with bytes of its own: its number as a JPEG comment."""
    folder.mkdir()
    images = pq.read_table(photos, columns=["jpg"])["jpg"].to_pylist()
    for shard in range(REPEATS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row, image in enumerate(images):
                key = f"{shard:05d}{row:04d}"
                comment = b"\xff\xfe" + (len(key) + 2).to_bytes(2, "big") + key.encode()
                meta = {"key": key, "url": f"https://example.invalid/{key}.jpg", "status": "success", "width": 224}
                files = {"jpg": image[:2] + comment + image[2:], "json": json.dumps(meta).encode(), "txt": b"a photo"}
                for suffix, content in files.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return sorted(map(str, folder.glob("*.tar")))


def timed(script: str, scratch: Path, tars: list[str]) -> tuple[float, float, int]:
    """Run one side on one core into a fresh folder: CPU seconds, wall seconds, images kept."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", script, str(out), *tars],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        capture_output=True,
        text=True,
        check=True,
    )
    cpu, wall, kept = done.stdout.split()
    return float(cpu), float(wall), int(kept)


def compare(name: str, tars: list[str], runs: int, scratch: Path) -> dict[str, Any]:
    """Alternate both sides; the ratio is taken in each pair, so that what slows a pair slows both."""
    pairs = [(timed(PLAIN, scratch, tars), timed(OURS, scratch, tars)) for _ in range(runs)]
    kept = pairs[0][1][2]
    ratios = sorted(plain[0] / ours[0] for plain, ours in pairs)
    return {
        "what": name,
        "images": kept,
        "plain_cpu_us": round(statistics.median(plain[0] for plain, _ in pairs) / kept * 1e6),
        "ours_cpu_us": round(statistics.median(ours[0] for _, ours in pairs) / kept * 1e6),
        "ratio_cpu": f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
        "ratio_wall": round(statistics.median(plain[1] / ours[1] for plain, ours in pairs), 2),
        "runs": runs,
    }


def peak_memory(tars: list[str], jobs: int, scratch: Path) -> int:
    """Largest sum of the resident memory of ingest and its workers, in bytes."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    path = scratch / "ingest_once.py"  # a file, for spawned workers import it
    path.write_text(
        "import sys\nfrom pathlib import Path\nfrom pipelines.ingest import IngestConfig, run\n"
        "if __name__ == '__main__':\n"
        f"    run(IngestConfig(sources=tuple(sys.argv[2:]), pool=Path(sys.argv[1]), jobs={jobs}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(path), str(out), *tars], env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert process.wait() == 0
    finally:
        done.set()
        watcher.join()
    return peak


def resident(session: int) -> int:
    """Resident bytes of all processes of a session."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == session:
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--crawl", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    crawl = sorted(str(path) for path in arguments.crawl.glob("*.tar"))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        photos = lay_out(arguments.photos, scratch / "photos")
        print(time.strftime("%Y-%m-%d"), json.dumps(compare("photographs, 224 px", photos, arguments.runs, scratch)))
        print(time.strftime("%Y-%m-%d"), json.dumps(compare("crawl, 32 px", crawl[:10], arguments.runs, scratch)))
        for jobs in (1, 2):
            few, many = (peak_memory(tars, jobs, scratch) for tars in (crawl[:10], crawl[:30]))
            print(
                f"peak memory, {jobs} jobs: {few >> 20} MiB for 10 shards, {many >> 20} for 30: {many / few - 1:+.1%}"
            )


if __name__ == "__main__":
    main()
