"""Features of a pool's images by a frozen network, computed once and kept beside the pool.

pool/features/DIGEST/00000.safetensors   float16 tensors, row i for row i of pool/00000.parquet:
    image (N, D)                  pooled features of the thumbnail
    weak, strong (N, V, D)        of V weak and V strong views of it (`models.augment`)
    WITNESS (N, F)                what each witness sees (`models.witnesses`)

DIGEST stands for the network with its weights, its input size, and the numbers of tiles and views. The same network
never reads an image twice: every training, score and index takes what is there. A file whose shard has changed is made
again.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors.numpy import load as loads
from safetensors.numpy import save_file
from torch import Generator, Tensor

from models import augment, witnesses
from models.frozen import Frozen
from models.ranks import Rng
from pipelines.images.photo import Photo, PhotoDecoder
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locations
from pipelines.storage.atomic import make_folder, replacing
from pipelines.storage.locations import Location

FOLDER = "features"
BATCH = 8  # photographs that the network sees at once, with all their tiles
FINITE = 65_000.0  # float16 ends at 65,504

Features = dict[str, npt.NDArray[np.float16]]
VIEWS = ("image", "weak", "strong")  # all other features are of witnesses


@dataclass(frozen=True)
class FeatureReader:
    """A frozen network, and how an image is shown to it: as up to `num_tiles` tiles at each scale, and as views.

    Of each image there are `num_views` weak and as many strong views.
    """

    frozen: Frozen
    num_tiles: int
    num_views: int
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max(2, torch.get_num_threads())))

    @property
    def digest(self) -> str:
        """Names everything that the features depend on but the image."""
        return f"{self.frozen.digest}-{self.num_tiles}-{self.num_views}-{witnesses.REVISION}"

    def read(self, keys: Sequence[str], data: Sequence[bytes], on_tick: OnTick = ignore) -> Features:
        """Features of images given as file contents; CorruptShard names one that cannot be decoded."""
        decoder = PhotoDecoder(self.frozen.size, self.num_tiles)
        parts = []
        waiting = None
        starts = range(0, len(keys), BATCH)

        def decode(start: int) -> Any:
            return self.threads.map(decoder.decode, keys[start : start + BATCH], data[start : start + BATCH])

        for start in starts:  # while the network reads one batch, the next is decoded
            photos = list(waiting if waiting is not None else decode(start))
            waiting = decode(start + BATCH) if start + BATCH < len(keys) else None
            parts.append(self._read_batch(photos, zlib.crc32(data[start])))
            on_tick(Tick(done=min(start + BATCH, len(keys)), total=len(keys), unit="images"))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    @torch.no_grad()
    def _read_batch(self, photos: Sequence[Photo], seed: int) -> Features:
        device = next(self.frozen.parameters()).device
        tiles, owners = dict[str, Tensor](), dict[str, Tensor]()
        for scale in witnesses.SCALES:
            each = [getattr(photo, scale) for photo in photos]
            tiles[scale] = torch.from_numpy(np.concatenate(each)).to(device)
            counts = torch.tensor([len(part) for part in each])
            owners[scale] = torch.arange(len(photos)).repeat_interleave(counts).to(device)
        found = witnesses.read(self.frozen, tiles, owners, len(photos))
        thumbnails = torch.from_numpy(np.stack([photo.thumbnail for photo in photos])).to(device)
        rng = Rng(Generator(device).manual_seed(seed))
        of_image = self.frozen(thumbnails)
        found |= {"thumbnail_content": of_image.everything, "image": of_image.pooled}
        for name, view in (("weak", augment.weak), ("strong", augment.strong)):
            each_view = [self.frozen(view(thumbnails, rng)).pooled for _ in range(self.num_views)]
            found[name] = torch.stack(each_view, 1) if each_view else of_image.pooled[:, None][:, :0]
        return {name: value.clamp(-FINITE, FINITE).half().cpu().numpy() for name, value in found.items()}


@dataclass(frozen=True)
class FeatureStore:
    """Features of a pool's shards, read from beside the pool, or computed and written there."""

    pool: Pool
    reader: FeatureReader

    @property
    def folder(self) -> Location:
        """Folder of the files of this network."""
        return self.pool.root / FOLDER / self.reader.digest

    def shard(self, number: int, on_tick: OnTick = ignore) -> Features:
        """Features of all images of the `number`-th shard."""
        name = self.pool.shards[number]
        if (found := self._stored(name)) is not None:
            on_tick(Tick(done=self.pool.counts[number], total=self.pool.counts[number], unit="images"))
            return found
        rows = Rows.of_shard(self.pool, number)
        features = self.reader.read(rows.key.tolist(), rows.read(range(len(rows))), on_tick)
        self._write(name, features)
        return features

    def shards(self, on_tick: OnTick = ignore) -> Iterator[tuple[int, Features]]:
        """Number and features of every shard, one at a time."""
        done, total = 0, self.pool.num_images
        for number, count in enumerate(self.pool.counts):

            def on_shard(tick: Tick, before: int = done) -> None:
                on_tick(Tick(done=before + tick.done, total=total, unit="images"))

            yield number, self.shard(number, on_shard)
            done += count

    def _stored(self, shard: str) -> Features | None:
        path = self.folder / f"{shard}.safetensors"
        try:
            content = locations.read(path)
            found = loads(content)
            origin = _origin(content)
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, ValueError):  # cut short; it is made again
            return None
        return found if origin == self.pool.digest(shard) else None

    def _write(self, shard: str, features: Features) -> None:
        if isinstance(self.folder, Path):
            make_folder(self.folder)
        arrays = {name: np.ascontiguousarray(value) for name, value in features.items()}
        with replacing(self.folder / f"{shard}.safetensors") as temporary:
            save_file(arrays, temporary, {"shard": self.pool.digest(shard)})


def _origin(content: bytes) -> str | None:
    """The shard's digest in a safetensors file: its header is a length of 8 bytes and JSON."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    digest = metadata.get("shard")
    return str(digest) if digest else None
