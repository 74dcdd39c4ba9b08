"""Features of a pool's images by a frozen network, computed once and kept beside the pool.

pool/features/DIGEST/00000-000500.safetensors   float16 tensors of up to PART rows of pool/00000.parquet, from 500 on:
    images (N, 1 + 2V, D)   pooled features of the thumbnail, of V weak views of it and of V strong ones
    tiles (N, F + 1)        what the witnesses see, and the fold of the image (`models.panel`)

DIGEST stands for the network with its weights, precision and input size, and the numbers of tiles and views. The same
network never reads an image twice: every training, score and index takes what is there. A file whose shard has changed
is made again.
"""

import hashlib
import json
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import safetensors
import torch
from safetensors.torch import load as loaded
from safetensors.torch import save as saved
from torch import Generator, Tensor

from models import augment, ranks, witnesses
from models.frozen import Frozen
from models.panel import fold_of
from models.ranks import Rng
from pipelines.images.check import foreign_images
from pipelines.images.photo import Photo, PhotoDecoder
from pipelines.images.views import Views
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locations
from pipelines.storage.atomic import make_folder, replacing
from pipelines.storage.locations import Location

FOLDER = "features"
BATCH = 8  # photographs that the network sees at once, with all their tiles
PART = 500  # images whose files are in memory at a time; a killed command loses the features of no more
ENOUGH_SECONDS = 5.0  # of reading tell how long the rest will take
LARGEST = 65_000.0  # float16 ends at 65,504


@dataclass(frozen=True)
class FeatureReader:
    """A frozen network, and how an image is shown to it: as up to `num_tiles` tiles at each scale, and as views.

    It stands in for `pipelines.images.views.Decoder`: where that gives pixels, this gives features.
    """

    frozen: Frozen
    num_tiles: int
    num_views: int  # weak ones, and as many strong ones
    gives_pixels: bool = False  # the thumbnails (B, 3, S, S) in place of the features of views, for a trained backbone

    @property
    def digest(self) -> str:
        """Names everything that the features depend on but the image."""
        return f"{self.frozen.digest}-{self.num_tiles}-{self.num_views}-{witnesses.REVISION}"

    @property
    def bytes_of_views(self) -> int:
        """What the features of an image's views take, in memory and beside the pool."""
        return 2 * (1 + 2 * self.num_views) * self.frozen.num_pooled

    @property
    def bytes_of_tiles(self) -> int:
        """What an image's features for the witnesses take."""
        return 2 * (sum(self.widths.values()) + 1)

    @property
    def widths(self) -> dict[str, int]:
        """Number of features of each witness, in the order of `tiles`."""
        return witnesses.widths(self.frozen)

    @foreign_images()
    def batch(
        self,
        keys: Sequence[str],
        data: Sequence[bytes],
        threads: ThreadPoolExecutor,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> Views:
        """Features of images given as file contents, float16 on the CPU; CorruptShard names one that is none.

        While the network reads some, `threads` decode as many of the next as keep them all busy. `on_batch` hears how
        many are done.
        """
        decoder = PhotoDecoder(self.frozen.size, self.num_tiles)
        starts = range(0, len(keys), BATCH)
        ahead = 1 + torch.get_num_threads() // BATCH

        def decode(start: int) -> list[Future[Photo]]:
            chosen = slice(start, start + BATCH)
            return [threads.submit(decoder.decode, *pair) for pair in zip(keys[chosen], data[chosen], strict=True)]

        parts = []
        waiting = deque(decode(start) for start in starts[:ahead])
        for start in starts:
            photos = [each.result() for each in waiting.popleft()]
            waiting.append(decode(start + ahead * BATCH))
            parts.append(self._read(photos, data[start : start + BATCH]))
            on_batch(start + len(photos))
        return Views(torch.cat([part.images for part in parts]), torch.cat([part.tiles for part in parts]))

    @torch.no_grad()
    def _read(self, photos: Sequence[Photo], data: Sequence[bytes]) -> Views:
        device = next(self.frozen.parameters()).device
        tiles, owners = dict[str, Tensor](), dict[str, Tensor]()
        for scale in witnesses.SCALES:
            each = [getattr(photo, scale) for photo in photos]
            tiles[scale] = torch.from_numpy(np.concatenate(each)).to(device)
            counts = torch.tensor([len(part) for part in each])
            owners[scale] = torch.arange(len(photos)).repeat_interleave(counts).to(device)
        thumbnails = torch.from_numpy(np.stack([photo.thumbnail for photo in photos])).to(device)
        of_image = self.frozen(thumbnails)
        seen = witnesses.read(self.frozen, tiles, owners, of_image)
        fold = fold_of([hashlib.sha256(content).hexdigest() for content in data])
        packed = _half(torch.cat((*seen.values(), fold[:, None].to(device)), 1))
        if self.gives_pixels:
            return Views(thumbnails.cpu(), packed)
        rng = Rng(Generator(device).manual_seed(zlib.crc32(data[0])), is_shared=False)
        views = [of_image.pooled]
        for view in (augment.weak, augment.strong):
            views += [self.frozen(view(thumbnails, rng)).pooled for _ in range(self.num_views)]
        return Views(_half(torch.stack(views, 1)), packed)


@dataclass(frozen=True)
class FileStore:
    """Features of files outside a pool, such as the labeled images, kept beside the pool as well; see FeatureStore."""

    pool: Pool
    reader: FeatureReader

    def batch(self, keys: Sequence[str], data: Sequence[bytes], threads: ThreadPoolExecutor) -> Views:
        """Features of images given as file contents; CorruptShard names one that is none."""
        digest = hashlib.sha256("".join(hashlib.sha256(content).hexdigest() for content in data).encode()).hexdigest()
        kind = "files-with-pixels" if self.reader.gives_pixels else "files"
        path = self.pool.root / FOLDER / self.reader.digest / f"{kind}-{digest[:16]}.safetensors"
        views = _stored(path, digest)
        if views is None:
            views = self.reader.batch(keys, data, threads)
            _write(path, digest, views)
        return views


def _half(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST, LARGEST).half().cpu()


@dataclass
class Wait:
    """How long the features that are missing, given as ranges of rows, will take."""

    missing: Sequence[range]
    is_told: bool = False

    def sentence(self, done: int, seconds: float) -> str:
        """The sentence, once, as soon as `seconds` for the missing ones among `done` rows tell; else nothing."""
        if self.is_told or seconds < ENOUGH_SECONDS:
            return ""
        read = sum(max(0, min(done, part.stop) - part.start) for part in self.missing)
        total = sum(len(part) for part in self.missing)
        if not 0 < read < total:
            return ""
        self.is_told = True
        minutes = max(1, round(seconds / read * total / 60))
        return f"Reading {total} images takes about {minutes} min, once for each pool."


@dataclass(frozen=True)
class FeatureStore:
    """Features of a pool's shards, read from beside the pool, or computed and written there."""

    pool: Pool
    reader: FeatureReader

    def shard(self, number: int, on_tick: OnTick = ignore) -> Views:
        """Features of all images of the `number`-th shard, in the order of its manifest."""
        rows, parts = Rows.of_shard(self.pool, number), [self._empty()]
        for chosen in _parts(len(rows)):
            parts.append(self._part(rows, number, chosen, on_tick))
            on_tick(Tick(done=chosen.stop, total=len(rows), unit="images"))
        return Views(torch.cat([part.images for part in parts]), torch.cat([part.tiles for part in parts]))

    def compute_own(self, on_tick: OnTick = ignore) -> None:
        """Compute this rank's part of the features that are not there yet; then wait for the other ranks.

        On one machine, or with a file system that the ranks share, no feature is computed twice.
        """
        if ranks.world_size() == 1:
            return
        turn = 0
        for number in range(len(self.pool.shards)):
            rows = Rows.of_shard(self.pool, number)
            for chosen in _parts(len(rows)):
                if turn % ranks.world_size() == ranks.rank():
                    self._part(rows, number, chosen, on_tick)
                turn += 1
        ranks.any_rank(False, next(self.reader.frozen.parameters()).device)

    def _part(self, rows: Rows, number: int, chosen: range, on_tick: OnTick) -> Views:
        shard = self.pool.shards[number]
        path, digest = self._location(shard, chosen.start), self.pool.digest(shard)
        views = _stored(path, digest)
        if views is None:
            views = self._computed(rows, chosen, on_tick)
            _write(path, digest, views)
        return views

    def _computed(self, rows: Rows, chosen: range, on_tick: OnTick) -> Views:
        keys, start = rows.key[chosen.start : chosen.stop].tolist(), chosen.start
        with ThreadPoolExecutor(max(2, torch.get_num_threads())) as threads:
            return self.reader.batch(
                keys,
                rows.read(chosen),
                threads,
                lambda done: on_tick(Tick(done=start + done, total=len(rows), unit="images")),
            )

    def shards(self, on_tick: OnTick = ignore) -> Iterator[tuple[int, Views]]:
        """Number and features of every shard, one at a time; says how long it will take as soon as it can tell."""
        before, started, wait = 0, time.monotonic(), Wait(self._missing())

        def on_shard(tick: Tick) -> None:
            done = before + tick.done
            info = wait.sentence(done, time.monotonic() - started)
            on_tick(Tick(done=done, total=self.pool.num_images, unit="images", info=info))

        for number, count in enumerate(self.pool.counts):
            yield number, self.shard(number, on_shard)
            before += count

    def _missing(self) -> list[range]:
        """Rows of the pool whose features have no file yet."""
        stored = set(locations.names(self.pool.root / FOLDER / self.reader.digest))
        missing, before = [], 0
        for shard, count in zip(self.pool.shards, self.pool.counts, strict=True):
            for part in _parts(count):
                if self._location(shard, part.start).name not in stored:
                    missing.append(range(before + part.start, before + part.stop))
            before += count
        return missing

    def _location(self, shard: str, start: int) -> Location:
        return self.pool.root / FOLDER / self.reader.digest / f"{shard}-{start:06d}.safetensors"

    def _empty(self) -> Views:
        width = sum(self.reader.widths.values()) + 1
        images = torch.empty((0, 1 + 2 * self.reader.num_views, self.reader.frozen.num_pooled), dtype=torch.float16)
        return Views(images, torch.empty((0, width), dtype=torch.float16))


def _parts(num_rows: int) -> Iterator[range]:
    for start in range(0, num_rows, PART):
        yield range(start, min(start + PART, num_rows))


def _stored(path: Location, digest: str) -> Views | None:
    """Features in a file; None if there is none, it is damaged, or is of something else than `digest` says."""
    try:
        content = locations.read(path)
        found = loaded(content)
        views = Views(found["images"], found["tiles"])
    except (FileNotFoundError, safetensors.SafetensorError, KeyError, ValueError):
        return None
    return views if _origin(content) == digest else None


def _write(path: Location, digest: str, views: Views) -> None:
    make_folder(path.parent)
    content = saved({"images": views.images.contiguous(), "tiles": views.tiles.contiguous()}, {"of": digest})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _origin(content: bytes) -> str | None:
    """What the features in a safetensors file are of: its header is a length of 8 bytes and JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    digest = header.get("__metadata__", {}).get("of")
    return str(digest) if digest else None
