"""The truth about the images of a pool, where it is known: benchmarks and demos evaluate with it and never train on it.

A truth file is a parquet or CSV with the columns `key` (the image's name in the crawl, without its suffix),
`is_synthetic` (0, 1 or -1 for unknown) and, if known, `cls` (index into the sorted class names) and `sha256` (of the
image's bytes, hexadecimal). Crawls number their images alike, so only the SHA-256 tells whose truth a file is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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

    path: Path
    synthetic: dict[str, int]
    label: dict[str, int]
    sha256: dict[str, str] = field(default_factory=dict)  # empty if the file knows its images by name alone

    def of(
        self, members: Sequence[str], sha256: Sequence[str] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Look up images: whether synthetic (N,) and the class (N,), UNKNOWN where the file does not say.

        They are known by their names and, where it is given here and in the file, by their SHA-256.
        """
        names = [self._key(member) for member in members]
        synthetic = np.array([self.synthetic.get(name, UNKNOWN) for name in names], dtype=np.int64)
        label = np.array([self.label.get(name, UNKNOWN) for name in names], dtype=np.int64)
        if self.sha256 and sha256 is not None:
            others = [self.sha256.get(name) != digest for name, digest in zip(names, sha256, strict=True)]
            synthetic[others] = label[others] = UNKNOWN
        return synthetic, label

    def check(self, pool: Pool) -> None:
        """Raise BadInput if the truth covers no image of the pool."""
        same = 0
        for rows in pool.tables(["member", "sha256"]):
            members = rows["member"].to_pylist()
            if (self.of(members, rows["sha256"].to_pylist())[0] != UNKNOWN).any():
                return
            same += sum(self._key(member) in self.synthetic for member in members)
        if same and self.sha256:
            raise BadInput(
                f"--truth {self.path} is of another crawl: {same:,} of its keys are names in {pool.root}, but none of "
                "these images has the sha256 that the file gives. Give the truth of this pool's crawl."
            )
        raise BadInput(
            f"--truth covers no image of {pool.root}. Its keys must be the names of the images in the crawl, without "
            "suffix."
        )

    def _key(self, member: str) -> str:
        """Name of an image without its suffix or, if the file knows it by that, up to the first dot."""
        name = PurePosixPath(member)
        return name.stem if name.stem in self.synthetic else name.name.partition(".")[0]

    @property
    def note(self) -> str | None:
        """What to know of a file that knows images by name alone."""
        if self.sha256:
            return None
        return (
            f"--truth {self.path} knows images by name alone, and another crawl may have the same names. With a column "
            "sha256, images of another crawl are left out."
        )


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
    digests = [str(digest).lower() for digest in table["sha256"].to_pylist()] if "sha256" in table.column_names else ()
    return Truth(
        path,
        dict(zip(keys, synthetic, strict=True)),
        dict(zip(keys, labels, strict=True)),
        dict(zip(keys, digests, strict=True)) if digests else {},
    )
