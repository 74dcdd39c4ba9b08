"""How many of each image's nearest neighbors disagree with it, counted once and kept in run/review/neighborhood.npy."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.progress import OnTick, Tick
from pipelines.run.neighbors import Index, num_others
from pipelines.storage import locks
from pipelines.storage.atomic import replacing, save_array

NEIGHBORS = 10  # of each image, among which disagreement is counted

_CHUNK = 1024


@dataclass(frozen=True)
class Neighborhood:
    """Shares (N,) of each image's nearest neighbors with another pseudo-label or verdict by the model."""

    other_label: npt.NDArray[np.float32]
    other_verdict: npt.NDArray[np.float32]


def find(
    index: Index, labels_N: npt.NDArray[np.int16], synthetic_N: npt.NDArray[np.bool_], on_tick: OnTick
) -> Neighborhood:
    """The disagreement of all N images of an index, whose positions are those of `labels_N` and `synthetic_N`."""
    folder = index.scored.run / "review"
    with locks.awaited(folder):  # a second page uses the result of the first
        return _look_up(folder / "neighborhood.npy", index, labels_N, synthetic_N, on_tick)


def _look_up(
    file: Path, index: Index, labels_N: npt.NDArray[np.int16], synthetic_N: npt.NDArray[np.bool_], on_tick: OnTick
) -> Neighborhood:
    facts = json.dumps(index.parts).encode() + synthetic_N.tobytes() + labels_N.tobytes()
    fingerprint, size = hashlib.sha256(facts).digest(), len(labels_N)
    try:
        stored = np.load(file, allow_pickle=False)
        if stored.nbytes == 2 * size + len(fingerprint) and stored[2 * size :].tobytes() == fingerprint:
            return Neighborhood(*(stored[: 2 * size].reshape(2, -1) / np.float32(NEIGHBORS)))
    except (OSError, ValueError, EOFError):
        pass  # it is not stored yet, or truncated
    counts = np.zeros((2, size), dtype=np.uint8)
    first = 0
    for shard in index.scored.shards:
        embeddings = index.scored.embeddings(shard)
        for start in range(0, len(embeddings), _CHUNK):
            vectors = np.asarray(embeddings[start : start + _CHUNK], dtype=np.float32)
            own = np.arange(first + start, first + start + len(vectors))
            _, found = index.search_positions(vectors, NEIGHBORS + 1)  # positions are rows
            counts[0, own], _ = num_others(found, own, labels_N, NEIGHBORS)
            counts[1, own], _ = num_others(found, own, synthetic_N, NEIGHBORS)
        first += len(embeddings)
        on_tick(Tick(done=first, total=size, unit="images"))
    with replacing(file) as temporary:
        save_array(temporary, np.concatenate([counts.ravel(), np.frombuffer(fingerprint, np.uint8)]))
    return Neighborhood(*(counts / np.float32(NEIGHBORS)))
