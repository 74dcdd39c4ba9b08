"""The truth about the images of a pool, where it is known: benchmarks and demos evaluate with it and never train on it.

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
_CSV = pyarrow.csv.ConvertOptions(column_types={"key": pa.string()})  # 000123 is a name, not a number


@dataclass(frozen=True)
class Truth:
    """Truth by an image's name in the crawl, without suffix: 1 synthetic or 0 real; index of the class; or UNKNOWN."""

    synthetic: dict[str, int]
    label: dict[str, int]

    def of(self, members: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Look up image names: whether synthetic (N,) and the class (N,), UNKNOWN where the file does not say."""
        names = [PurePosixPath(member).name.split(".")[0] for member in members]
        synthetic = np.array([self.synthetic.get(name, UNKNOWN) for name in names], dtype=np.int64)
        return synthetic, np.array([self.label.get(name, UNKNOWN) for name in names], dtype=np.int64)


def read(path: Path) -> Truth:
    """Read a truth file. BadInput if it is missing or lacks a column."""
    if not path.is_file():
        raise BadInput(f"{path} is not a file. Give --truth a parquet or CSV with the columns key and is_synthetic.")
    table: pa.Table = (
        read_parquet(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path, convert_options=_CSV)
    )
    if missing := {"key", "is_synthetic"} - set(table.column_names):
        raise BadInput(f"{path} has no column {min(missing)!r}, only {', '.join(table.column_names)}. Add that column.")
    keys = [str(key) for key in table["key"].to_pylist()]
    synthetic = table["is_synthetic"].cast(pa.int64()).to_pylist()
    labels = table["cls"].cast(pa.int64()).to_pylist() if "cls" in table.column_names else [UNKNOWN] * len(keys)
    return Truth(dict(zip(keys, synthetic, strict=True)), dict(zip(keys, labels, strict=True)))


def check(synthetic: npt.NDArray[np.int64], pool: Pool) -> None:
    """Raise BadInput if a truth (N,) covers no image of the pool."""
    if (synthetic == UNKNOWN).all():
        raise BadInput(
            f"--truth covers no image of {pool.root}. Its keys must be the names of the images in the crawl, without "
            "suffix."
        )
