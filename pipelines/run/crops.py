"""Hashes of crops: a crop has another perceptual hash than its picture, but the hash of one of nine crops of it.

They lack 5 % of each side: at one end, at the other, or half at both. A crop by less is near the hash of one of them or
of the whole.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.compute.processes import usable_cores
from pipelines.images.appearance import as_seen
from pipelines.images.check import foreign_images
from pipelines.images.phash import SIDE, phash
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick
from pipelines.storage.shards import read_spans_across

COUNT = 9

_CROPPED = 0.05  # of a side
_AT_ONCE = 256  # images read before they are decoded

Hashes = npt.NDArray[np.uint64]


def hashes(picture: Image.Image) -> Iterator[int]:
    """Hashes of a gray picture as a whole and of its crops, `COUNT` or, if it is tiny, fewer different ones."""
    width, height = picture.size
    right, bottom = round(width * _CROPPED), round(height * _CROPPED)
    boxes = [
        (left, top, left + width - right, top + height - bottom)
        for left in (0, right // 2, right)
        for top in (0, bottom // 2, bottom)
    ]
    for box in [(0, 0, width, height), *boxes]:
        crop = picture.crop(box)
        shrink = max(min(crop.size) // (2 * SIDE), 1)
        small = np.asarray(crop.reduce(shrink) if shrink > 1 else crop)
        yield phash(small, (crop.height / shrink, crop.width / shrink))


def of_pool(pool: Pool, on_tick: OnTick) -> Hashes:
    """Hashes (COUNT, N) of the crops of all images of a pool, in order; 0 where an image cannot be decoded.

    Every image is read and decoded.
    """
    found = np.zeros((pool.num_images, COUNT), dtype=np.uint64)
    done = 0
    with foreign_images(), ThreadPoolExecutor(usable_cores()) as threads:
        for shard in pool.shards:
            rows = pool.rows(shard, ["offset", "num_bytes"])
            places = zip(rows["offset"].to_pylist(), rows["num_bytes"].to_pylist(), strict=True)
            contents = read_spans_across((pool.tar(shard), offset, num_bytes) for offset, num_bytes in places)
            while some := list(islice(contents, _AT_ONCE)):
                found[done : done + len(some)] = list(threads.map(_of_crops, some))
                done += len(some)
                on_tick(Tick(done=done, total=len(found), unit="images cropped"))
    return found.T


def _of_crops(content: bytes) -> list[int]:
    try:
        return list(hashes(as_seen(content, 4 * SIDE).convert("L")))[1:]
    except MemoryError:
        raise  # a problem of this machine, not of the image
    except Exception:  # Pillow's decoders raise almost anything on damaged bytes
        return [0] * COUNT
