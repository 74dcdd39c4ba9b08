"""What Ray costs where one machine would do: ingest by local processes and by a local Ray. Run by hand:

    python tests/bench/engines.py --photos photos-224.parquet [--runs 5]

`--photos` is laid out as tars as in `ingest.py`. Runs alternate, each into a fresh pool, by two processes: local ones,
a Ray that is started and ended for it, and a Ray that is up already. All pools must be the same bytes.
"""

import argparse
import hashlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import ray
from ingest import lay_out

from pipelines.ingest import IngestConfig, run

JOBS = 2


def timed(tars: list[str], pool: Path, engine: str) -> tuple[float, str]:
    """Seconds of one ingest, and a digest of the pool's tars and manifests."""
    shutil.rmtree(pool, ignore_errors=True)
    start = time.perf_counter()
    run(IngestConfig(sources=tuple(tars), pool=pool, jobs=JOBS, engine=engine))  # type: ignore[arg-type]
    seconds, digest = time.perf_counter() - start, hashlib.sha256()
    for path in sorted(pool.glob("0*")):
        digest.update(path.read_bytes())
    return seconds, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"local": [], "ray, started for it": [], "ray, up already": []}
    digests = set[str]()
    with tempfile.TemporaryDirectory() as folder:
        tars = lay_out(arguments.photos, Path(folder) / "crawl")
        for _ in range(arguments.runs):
            for name, values in seconds.items():
                if name == "ray, up already":
                    ray.init(address="local", num_cpus=JOBS, include_dashboard=False, log_to_driver=False)
                took, digest = timed(tars, Path(folder) / "pool", name.split(",")[0])
                ray.shutdown()
                values.append(took)
                digests.add(digest)
    assert len(digests) == 1
    for name, values in seconds.items():
        more = sorted(value - local for value, local in zip(values, seconds["local"], strict=True))
        print(
            f"{name}: {statistics.median(values):.1f} s ({min(values):.1f} to {max(values):.1f}); "
            f"more than local, paired: {statistics.median(more):.1f} s ({more[0]:.1f} to {more[-1]:.1f})"
        )


if __name__ == "__main__":
    main()
