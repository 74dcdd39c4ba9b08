"""Fetch the real images of a benchmark: CIFAR-10, CIFAR-100 and TinyImageNet, from their authors' own sites.

in      the archive, by HTTP and checked by its MD5, unless it is in `root` already
out     root/NAME/train.parquet and test.parquet: key, png or jpg (the image's bytes), class_name
        root/NAME/classes.txt: one name a line, for `curate generate --classes`
again   existing files are kept; an incomplete archive is fetched again

CIFAR is read from its binary version, because the version that torchvision reads is pickled. It is published without
loss and saved as PNG. If the synthetic images are JPEGs, a detector would learn that difference in codec instead of the
origin: fetch CIFAR as "jpg" then (quality 75, 4:2:0, see `images.encode.JPEG`), or pass both through `sources.matched`.
TinyImageNet is published as JPEG and kept so. Its test images have no labels, so test.parquet holds its val images.
"""

import http.client
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.errors import BadInput
from pipelines.images.encode import encode
from pipelines.storage.atomic import replacing

Codec = Literal["png", "jpg"]
SPLITS = ("train", "test")
_SIDE = 32  # of CIFAR's images, in pixels
_ROWS = 5000  # in a row group


class Record(NamedTuple):
    """One image of a data set."""

    key: str
    image: bytes
    class_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Where a data set is published. `read(archive, split, codec)` yields its records."""

    url: str
    md5: str
    read: Callable[[Path, str, Codec], Iterator[Record]]
    codecs: tuple[Codec, ...]  # that it can be fetched in; the first is the published one


def fetch(name: str, root: Path, codec: Codec | None = None) -> Path:
    """Fetch a data set of `DATASETS` into `root`, unless it is there. Returns the folder of train and test.parquet.

    A `codec` of None keeps the published one. Raises BadInput if the download fails or the archive has another MD5.
    """
    if name not in DATASETS:
        raise BadInput(f"{name} is not a data set that can be fetched. Name one of {', '.join(sorted(DATASETS))}.")
    return fetch_from(DATASETS[name], name, root, codec)


def fetch_from(dataset: Dataset, name: str, root: Path, codec: Codec | None = None) -> Path:
    """Fetch the data set that `dataset` describes; see `fetch`."""
    chosen = codec or dataset.codecs[0]
    if chosen not in dataset.codecs:
        raise BadInput(f"{name} is published as {dataset.codecs[0]} and not available as {chosen}. Fetch it so.")
    folder = root / (name if chosen == dataset.codecs[0] else f"{name}-{chosen}")
    missing = [split for split in SPLITS if not (folder / f"{split}.parquet").is_file()]
    if missing:
        archive = _download(dataset, root)
        folder.mkdir(exist_ok=True)
        for split in missing:
            _write(folder, split, chosen, dataset.read(archive, split, chosen))
    return folder


def _download(dataset: Dataset, root: Path) -> Path:
    from torchvision.datasets.utils import download_url  # heavy

    archive = root / dataset.url.rpartition("/")[2]
    try:
        download_url(dataset.url, root, archive.name, dataset.md5)
    except RuntimeError:
        raise BadInput(f"{dataset.url} did not arrive whole, or has changed. Run the same command again.") from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise BadInput(
            f"{dataset.url} cannot be downloaded ({why}). Run the same command again with a network, or copy the file "
            f"to {archive} by other means."
        ) from None
    return archive


def _write(folder: Path, split: str, codec: Codec, records: Iterator[Record]) -> None:
    schema = pa.schema([("key", pa.string()), (codec, pa.binary()), ("class_name", pa.string())])
    classes = set[str]()
    with (
        replacing(folder / f"{split}.parquet") as temporary,
        pq.ParquetWriter(temporary, schema) as file,
    ):
        while rows := list(islice(records, _ROWS)):
            file.write_table(pa.table(list(zip(*rows, strict=True)), schema=schema))
            classes.update(row.class_name for row in rows)
        with replacing(folder / "classes.txt") as names:
            names.write_text("".join(f"{name}\n" for name in sorted(classes)), encoding="utf-8")


# Archives


def _cifar(
    archive: Path,
    split: str,
    codec: Codec,
    *,
    folder: str,
    names_file: str,
    batches: Mapping[str, Sequence[str]],
    label_bytes: int,
) -> Iterator[Record]:
    """Read CIFAR's binary version: `label_bytes` labels, of which the last is the class, then RGB planes of 32x32."""
    with tarfile.open(archive, "r:gz") as tar:

        def content(name: str) -> bytes:
            file = tar.extractfile(f"{folder}/{name}")
            assert file is not None
            return file.read()

        names = content(names_file).decode("ascii").split()
        for batch in batches[split]:
            records = np.frombuffer(content(batch), dtype=np.uint8).reshape(-1, label_bytes + 3 * _SIDE * _SIDE)
            labels = records[:, label_bytes - 1].tolist()
            pixels_NHWC = records[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
            for i, (label, pixels) in enumerate(zip(labels, pixels_NHWC, strict=True)):
                picture = Image.fromarray(np.ascontiguousarray(pixels))
                yield Record(f"{Path(batch).stem}-{i:05d}", encode(picture, codec), names[label])


def _tiny_imagenet(archive: Path, split: str, codec: Codec) -> Iterator[Record]:
    """Read tiny-imagenet-200.zip. A class is named by the first of its synonyms."""
    top = "tiny-imagenet-200"
    with zipfile.ZipFile(archive) as file:
        wnids = file.read(f"{top}/wnids.txt").decode("ascii").split()
        names = _names(wnids, file.read(f"{top}/words.txt").decode("utf-8"))
        if split == "test":
            lines = file.read(f"{top}/val/val_annotations.txt").decode("ascii").splitlines()
            found = [(f"{top}/val/images/{line.split()[0]}", line.split()[1]) for line in lines]
        else:
            pattern = re.compile(rf"{top}/train/(n\d+)/images/[^/]+\.JPEG")
            found = [(name, match[1]) for name in file.namelist() if (match := pattern.fullmatch(name))]
        for name, wnid in sorted(found):
            yield Record(Path(name).stem, file.read(name), names[wnid])


def _names(wnids: Sequence[str], words: str) -> dict[str, str]:
    """Class names by WordNet id. If two classes have the same name, the id is added to both."""
    synonyms = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    first = {wnid: synonyms[wnid].split(",")[0].strip() for wnid in wnids}
    count = Counter(first.values())
    return {wnid: name if count[name] == 1 else f"{name} ({wnid})" for wnid, name in first.items()}


DATASETS = {
    "cifar10": Dataset(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        read=partial(
            _cifar,
            folder="cifar-10-batches-bin",
            names_file="batches.meta.txt",
            batches={"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
            label_bytes=1,
        ),
        codecs=("png", "jpg"),
    ),
    "cifar100": Dataset(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        read=partial(
            _cifar,
            folder="cifar-100-binary",
            names_file="fine_label_names.txt",
            batches={"train": ["train.bin"], "test": ["test.bin"]},
            label_bytes=2,
        ),
        codecs=("png", "jpg"),
    ),
    "tinyimagenet": Dataset(
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        read=_tiny_imagenet,
        codecs=("jpg",),
    ),
}
