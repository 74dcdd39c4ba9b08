"""What the rough search of `inspect --disagreement` costs: who is listed, and who would be by thorough searches alone.

    OMP_NUM_THREADS=1 python tests/bench/disagreement.py --pool POOL --run RUN [--neighbors 10] [--top 50]

Searches for every image of a scored pool both ways, so that it takes long beyond some 100,000 images, and compares the
results for the pool's own verdicts and for made ones: a smooth function of the embeddings that calls 40 % synthetic,
the same with 0.3 % of the images turned around, and verdicts drawn at random (30 %). One JSON line each: images that
most of their neighbors contradict, by the rough and by the thorough search; how many images all neighbors contradict;
how many of the listed ones are the same, whether in the same order, and the fewest contradicting neighbors among them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.inspect import disagreement
from pipelines.run.neighbors import Index, num_others
from pipelines.run.scores import ScoredPool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=Path("pool"))
    parser.add_argument("--run", type=Path, default=Path("run"))
    parser.add_argument("--neighbors", type=int, default=10)
    parser.add_argument("--top", type=int, default=50)
    args = parser.parse_args()
    scored = ScoredPool.open(args.pool, args.run)
    index = Index.open(scored)
    rough, thorough = (np.empty((index.num_images, args.neighbors + 1), dtype=np.int64) for _ in range(2))
    seconds = {"rough": 0.0, "thorough": 0.0}
    for own in index.neighborhoods():
        queries = index.embeddings(own)
        started = time.process_time()
        rough[own] = index.search_roughly(queries, args.neighbors + 1)
        halfway = time.process_time()
        _, thorough[own] = index.search_positions(queries, args.neighbors + 1)
        seconds["rough"] += halfway - started
        seconds["thorough"] += time.process_time() - halfway
    shared = [len({*a} & {*b}) / len(b) for a, b in zip(rough[::50].tolist(), thorough[::50].tolist(), strict=True)]
    print(json.dumps({**seconds, "found_roughly": float(np.mean(shared)), "lists": index.facts.lists_searched}))
    for name, (prob, synthetic) in verdicts(scored, index).items():
        print(json.dumps({"verdicts": name, **compare(prob, synthetic, rough, thorough, args.top)}), flush=True)


def verdicts(scored: ScoredPool, index: Index) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Distance from the threshold (N,) and verdict (N,): the pool's, and made ones."""
    rng = np.random.default_rng(0)
    prob, synthetic = disagreement.verdicts(scored)
    vectors = np.concatenate([index.embeddings(np.array(own)) for own in np.array_split(np.arange(len(prob)), 100)])
    directions = (vectors - vectors.mean(0)) @ rng.standard_normal((vectors.shape[1], 4))
    directions /= directions.std(0)
    wavy = directions[:, 0] + np.sin(2 * directions[:, 1]) + directions[:, 2] * directions[:, 3] / 2
    wavy -= np.quantile(wavy, 0.6)
    turned = np.where(rng.random(len(wavy)) < 0.003, -wavy, wavy)
    drawn = rng.random(len(wavy)) - 0.7
    found = {"the pool's": (np.abs(prob - scored.threshold), synthetic)}
    for name, values in (("smooth", wavy), ("smooth, some turned", turned), ("drawn", drawn)):
        found[name] = np.abs(values).astype(np.float32), values > 0
    return found


def compare(
    unsure: np.ndarray, synthetic: np.ndarray, rough: np.ndarray, thorough: np.ndarray, top: int
) -> dict[str, Any]:
    own, count = np.arange(len(unsure)), thorough.shape[1] - 1
    roughly, of_rough = num_others(rough, own, synthetic, count)
    truly, of_thorough = num_others(thorough, own, synthetic, count)
    chosen = disagreement.candidates(roughly.astype(np.int16), unsure, top)
    listed = chosen[disagreement.most_contradicted(truly[chosen], unsure[chosen], top)]
    wanted = disagreement.most_contradicted(truly, unsure, top)
    return {
        "share_synthetic": float(synthetic.mean()),
        "contradicted": [int((2 * roughly > of_rough).sum()), int((2 * truly > of_thorough).sum())],
        "by_all": int((truly == count).sum()),
        "searched_again": len(chosen),
        "listed": len(wanted),
        "same": len({*listed.tolist()} & {*wanted.tolist()}),
        "same_order": listed.tolist() == wanted.tolist(),
        "fewest": [int(truly[which].min(initial=count)) for which in (listed, wanted)],
    }


if __name__ == "__main__":
    main()
