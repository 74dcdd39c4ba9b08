"""Which index for which size: build time, bytes, peak memory, recall@10 against exact search, time of a query.

    OMP_NUM_THREADS=1 python tests/bench/index.py --sizes 100000 1000000 --json index.json

Makes vectors, lays them out as a scored run, and opens its index the way `curate inspect` does, in a process of its own
for each kind. `chosen` is what `run.neighbors` takes for the size; the others force a kind on it, and HNSW is FAISS
alone. Recall is of 1000 vectors that are not in the index, by identity; memory is what building adds to the process's
peak. The near-duplicates of the same pool come last.

The vectors are made to be like embeddings of the benchmark crawl (30,000 images, width 128): a mixture of 2000
Gaussians of Pareto-distributed weights, whose centers and spread (half as wide) both have variances that fall as
(j + 3) ** -2.1, turned by a random rotation, at unit length. Median distance to the 1st and 10th neighbor in 100,000:
0.053 and 0.082 (there: 0.042 and 0.067). Hashes are random with half of their bits set; one image in a hundred is a
copy of the one before it, with up to 4 bits and a little of its embedding changed.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import settings
from pipelines.pool.manifest import Pool, key_of
from pipelines.run import neighbors
from pipelines.run.duplicates import Groups
from pipelines.run.scores import ScoredPool

WIDTH = 128  # of the backbones wrn-28-2 and small
SHARD = 10_000
NUM_QUERIES = 1000
KINDS = ("chosen", "exact", "ivf-sq6", "ivf-pq", "hnsw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="multiples of 10,000")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path, default=Path("index.json"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kind, work = args.measure
        print(json.dumps(near_duplicates(Path(work)) if kind == "near-duplicates" else measure(kind, Path(work))))
        return
    results = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            lay_out(size, Path(folder))
            for kind in (*args.kinds, "near-duplicates"):
                command = [sys.executable, __file__, "--measure", kind, folder]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                results.append({"size": size, "kind": kind, **found})
                print(json.dumps(results[-1]), flush=True)
    args.json.write_text(
        json.dumps({"faiss": faiss.__version__, "threads": faiss.omp_get_max_threads(), "runs": results})
    )


def lay_out(size: int, work: Path) -> None:
    """Write pool/, run/ with scores and embeddings, and queries.npy with their exact neighbors."""
    for folder in ("pool", "run/scores", "run/embeddings"):
        (work / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    scale = (np.arange(WIDTH) + 3.0) ** -1.05  # standard deviations
    centers = rng.standard_normal((2000, WIDTH)) * scale
    share = rng.pareto(1.0, len(centers)) + 0.1
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]

    def vectors(count: int) -> np.ndarray:
        mine = rng.choice(len(centers), count, p=share / share.sum())
        made = (centers[mine] + 0.5 * rng.standard_normal((count, WIDTH)) * scale) @ turn
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    queries = neighbors.normalized(vectors(NUM_QUERIES))
    best = np.full((NUM_QUERIES, 10), -np.inf), np.full((NUM_QUERIES, 10), -1)
    pool = Pool(work / "pool")
    for number in range(size // SHARD):
        shard = f"{number:05d}"
        made, hashes = vectors(SHARD), random_hashes(rng, SHARD)
        copies = np.arange(1, SHARD, 100)
        made[copies] = made[copies - 1] + 0.01 * rng.standard_normal((len(copies), WIDTH)) * scale
        hashes[copies] = hashes[copies - 1]
        for _ in range(settings.RADIUS):
            hashes[copies] ^= np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
        keys = [key_of(number, row) for row in range(SHARD)]
        digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
        rows = pa.table({"key": keys, "sha256": digests, "phash": hashes})
        pq.write_table(rows, work / "pool" / f"{shard}.parquet")
        (work / "pool" / f"{shard}_stats.json").write_text(json.dumps({"successes": SHARD}))
        mark = {"model": "made", "shard": pool.digest(shard)}
        scores = pa.table({"key": keys}).replace_schema_metadata(mark)
        pq.write_table(scores, work / "run" / "scores" / f"{shard}.parquet")
        np.save(work / "run" / "embeddings" / f"{shard}.npy", made.astype(np.float16))

        flat = faiss.IndexFlatIP(WIDTH)
        flat.add(neighbors.normalized(made.astype(np.float16)))
        similarities, rows = flat.search(queries, 10)
        both = np.concatenate([best[0], similarities], axis=1), np.concatenate([best[1], rows + number * SHARD], axis=1)
        order = np.argsort(-both[0], axis=1)[:, :10]
        best = np.take_along_axis(both[0], order, 1), np.take_along_axis(both[1], order, 1)
    np.save(work / "queries.npy", queries)
    np.save(work / "exact.npy", best[1])


def random_hashes(rng: np.random.Generator, count: int) -> np.ndarray:
    bits = rng.permuted(np.repeat([[0, 1]], count, axis=0).repeat(32, axis=1), axis=1)
    return np.packbits(bits.astype(np.uint8), axis=1).view(np.uint64).ravel()


def measure(kind: str, work: Path) -> dict[str, Any]:
    scored = ScoredPool.open(work / "pool", work / "run")
    size = scored.pool.num_images
    before = peak_mb()
    if kind == "hnsw":
        return hnsw(scored, work, before)
    if kind != "chosen":
        lists = neighbors.choose(size).split(",")[0]
        factory = {"exact": "Flat", "ivf-sq6": f"{lists},SQ6", "ivf-pq": f"{lists},PQ{WIDTH}x4"}[kind]
        neighbors.choose = lambda _: factory
    started = time.perf_counter()
    built = neighbors.Index.open(scored)
    build_s = time.perf_counter() - started
    build_mb = peak_mb() - before
    started = time.perf_counter()
    loaded = neighbors.Index.open(scored)
    load_s = time.perf_counter() - started
    assert loaded.facts == built.facts
    queries, exact = np.load(work / "queries.npy"), np.load(work / "exact.npy")
    found, ms, batch_ms = search(lambda some: loaded.search_positions(some, 10)[1], queries)
    return {
        "index": loaded.facts.factory,
        "lists_searched": loaded.facts.lists_searched,
        "build_s": round(build_s, 2),
        "build_mb": build_mb,
        "mb": round((work / "run" / "index" / "faiss.index").stat().st_size / 1e6, 1),
        "load_s": round(load_s, 3),
        "recall_at_10": recall(found, exact),
        "recall_measured_at_build": round(loaded.facts.recall_at_10, 4),
        "query_ms": ms,
        "batch_ms": batch_ms,
    }


def hnsw(scored: ScoredPool, work: Path, before: int) -> dict[str, Any]:
    started = time.perf_counter()
    graph = faiss.index_factory(WIDTH, "HNSW32,SQfp16", faiss.METRIC_INNER_PRODUCT)
    for number, shard in enumerate(scored.shards):
        vectors = neighbors.normalized(scored.embeddings(shard))
        if number == 0:
            graph.train(vectors)
        graph.add(vectors)
    build_s = time.perf_counter() - started
    build_mb = peak_mb() - before
    faiss.write_index(graph, str(work / "hnsw.index"))
    queries, exact = np.load(work / "queries.npy"), np.load(work / "exact.npy")
    for effort in (16, 32, 64, 128, 256, 512):
        graph.hnsw.efSearch = effort
        found, ms, batch_ms = search(lambda some: graph.search(some, 10)[1], queries)
        if recall(found, exact) >= neighbors.TARGET_RECALL:
            break
    return {
        "index": "HNSW32,SQfp16",
        "ef_search": effort,
        "build_s": round(build_s, 2),
        "build_mb": build_mb,
        "mb": round((work / "hnsw.index").stat().st_size / 1e6, 1),
        "recall_at_10": recall(found, exact),
        "query_ms": ms,
        "batch_ms": batch_ms,
    }


def search(find: Any, queries: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Positions found, ms of a query alone (median), ms of a query among all."""
    alone = []
    for query in queries[:100]:
        started = time.perf_counter()
        find(query[None])
        alone.append(time.perf_counter() - started)
    started = time.perf_counter()
    found = find(queries)
    return (
        found,
        round(1000 * float(np.median(alone)), 3),
        round(1000 * (time.perf_counter() - started) / len(queries), 3),
    )


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return round(
        float(np.mean([len(set(f) & set(e)) / 10 for f, e in zip(found.tolist(), exact.tolist(), strict=True)])), 4
    )


def near_duplicates(work: Path) -> dict[str, Any]:
    scored = ScoredPool.open(work / "pool", work / "run")
    before = peak_mb()
    started = time.perf_counter()
    number_N = Groups.find(scored, settings.RADIUS, settings.MAX_DISTANCE).number_N
    seconds = time.perf_counter() - started
    planted = np.arange(1, len(number_N), 100)
    together = (number_N[planted] >= 0) & (number_N[planted] == number_N[planted - 1])
    return {
        "seconds": round(seconds, 2),
        "mb": peak_mb() - before,
        "planted": len(planted),
        "found": int(together.sum()),
        "other_images_grouped": int((number_N >= 0).sum()) - 2 * int(together.sum()),
    }


def peak_mb() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


if __name__ == "__main__":
    main()
