"""What is known about images without a person looking at them: what files declare, and a folder of synthetic images.

Declarations (`pipelines.images.provenance`) are no random sample: few generators and editors write them, and an editor
may copy or strip them. So they are one witness among others, and a check of a detector that did not learn from them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import BadInput, why
from pipelines.pool.labeled_files import images_below, refusal
from pipelines.pool.rows import Rows

Flags = npt.NDArray[np.bool_]


class KnownFile(NamedTuple):
    """A known synthetic image that is not in the pool."""

    path: Path
    content: bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known about rows (N,) of a pool; an image that `folder` holds is synthetic, whatever it declares."""

    declared_synthetic: Flags  # (N,) by the file itself
    declared_camera: Flags  # (N,) by the file itself
    listed: Flags  # (N,) also in the folder of known synthetic images
    files: tuple[KnownFile, ...]  # of that folder, outside the pool; no image twice, in the order of their paths

    @property
    def synthetic(self) -> Flags:
        """Rows (N,) that are known to be synthetic."""
        return self.declared_synthetic | self.listed


def read(
    rows: Rows,
    *,
    folder: Path | None = None,
    ignore_declared: bool = False,
    labeled: frozenset[str] = frozenset(),
) -> Known:
    """Read what is known about `rows`: what they declare, unless that is ignored, and the images of `folder`.

    `labeled` are the sha256 of the labeled real images. Raises BadInput for a folder without images, for a file in it
    that is not an image, and for an image that the labeled set calls real.
    """
    files = dict[str, KnownFile]()
    for file in _files(folder, labeled) if folder else ():
        files.setdefault(file.sha256, file)
    table = rows.columns(["sha256", "declared"])
    in_pool = pc.is_in(table["sha256"], value_set=pa.array(files, pa.string()))
    here = set(table["sha256"].filter(in_pool).to_pylist())

    listed = np.asarray(in_pool.to_numpy(), dtype=bool)

    def declared(what: str) -> Flags:
        if ignore_declared:
            return np.zeros(len(rows), dtype=bool)
        says = pc.equal(table["declared"], what).fill_null(False)
        return np.asarray(says.to_numpy(), dtype=bool)

    return Known(
        declared_synthetic=declared("synthetic"),
        declared_camera=declared("camera") & ~listed,
        listed=listed,
        files=tuple(file for file in files.values() if file.sha256 not in here),
    )


def _files(folder: Path, labeled: frozenset[str]) -> Iterator[KnownFile]:
    if not folder.is_dir():
        raise BadInput(f"--known-synthetic {folder} is not a folder. Give a folder of synthetic images.")
    paths, problems = images_below(folder)
    if problems:
        raise refusal(folder, [f"--known-synthetic: {problem}" for problem in problems])
    if not paths:
        raise BadInput(f"--known-synthetic {folder} holds no image. Put synthetic images into it, or leave it out.")
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"--known-synthetic: {path} cannot be read ({why(error)}). Fix or remove it.") from None
        digest = hashlib.sha256(content).hexdigest()
        if digest in labeled:
            raise BadInput(
                f"--known-synthetic: {path} is also in the labeled set, where it counts as real. Remove it from one of "
                "the two."
            )
        yield KnownFile(path, content, digest)
