"""Figures against a known truth, for benchmarks and demos: it is reported, never trained on.

A truth file is a parquet or CSV with the columns `key` (the image's name in the crawl, without its suffix),
`is_synthetic` (0, 1 or -1 for unknown) and, if known, `cls` (index into the sorted class names).
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from pipelines.errors import BadInput
from pipelines.pool.manifest import Pool, read_parquet

UNKNOWN = -1


@dataclass(frozen=True)
class Truth:
    """What images are, by their name in the crawl."""

    synthetic: dict[str, int]
    label: dict[str, int]

    def of(self, members: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Truth (N,) of being synthetic and of the class for image names, UNKNOWN where the file has none."""
        names = [PurePosixPath(member).name.split(".")[0] for member in members]
        synthetic = np.array([self.synthetic.get(name, UNKNOWN) for name in names], dtype=np.int64)
        return synthetic, np.array([self.label.get(name, UNKNOWN) for name in names], dtype=np.int64)


def read(path: Path) -> Truth:
    """Read a truth file; raises BadInput where a column is missing."""
    if not path.is_file():
        raise BadInput(f"{path}: is not a file; --truth takes a parquet or CSV with the columns key and is_synthetic.")
    table: pa.Table = read_parquet(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    if missing := {"key", "is_synthetic"} - set(table.column_names):
        raise BadInput(f"{path}: has no column {min(missing)!r}; it has {', '.join(table.column_names)}.")
    keys = [str(key) for key in table["key"].to_pylist()]
    synthetic = table["is_synthetic"].cast(pa.int64()).to_pylist()
    labels = table["cls"].cast(pa.int64()).to_pylist() if "cls" in table.column_names else [UNKNOWN] * len(keys)
    return Truth(dict(zip(keys, synthetic, strict=True)), dict(zip(keys, labels, strict=True)))


def check(synthetic: npt.NDArray[np.int64], pool: Pool) -> None:
    """Raise BadInput where a truth is of other images than those of a pool."""
    if (synthetic == UNKNOWN).all():
        raise BadInput(
            f"--truth: says of no image of {pool.root} whether it is synthetic; its keys have to be the names of the "
            "images in the crawl, without a suffix."
        )
