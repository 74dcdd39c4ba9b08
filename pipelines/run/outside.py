"""Scores from outside: what other detectors, aesthetic models, CLIP or NSFW filters say about images.

A parquet or CSV has one value per image, by the pool's `key` or by the `sha256` of the image's bytes. `read` checks
such files, `store` keeps them in run/outside.parquet, or in that of a further pool (`pipelines.run.belonging`): a row
per sha256, sorted, with a float column for each name. From
there they are columns of the scored pool (`pipelines.run.scores`), for `--where`, report, review and export. Files by
sha256 may also score images that are not in the pool, such as the labeled set.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import BadInput, CorruptShard, Incompatible, why
from pipelines.pool.manifest import POOL_SCHEMA, Pool
from pipelines.pool.rows import Rows
from pipelines.storage.atomic import replacing

if TYPE_CHECKING:
    from torch import Tensor

FILE = "outside.parquet"
WITNESS = "outside_"  # before a name, where the scores are a witness

KEYS = ("sha256", "key")
VALUES = ("value", "score")  # of the column with the values, if it is not named like the scores
# Names that columns of the pool, of its scores or of a table made of both already have, in any case.
TAKEN = {
    *POOL_SCHEMA.names, "prob_synthetic", "synthetic", "verdict", "pseudo_label", "confidence", "probs",
    "raw_confidence", "typicality", "marked", "row", "stop", "group", "value",
}  # fmt: skip

_TRAINED = b"trained"  # names that the run was trained with, in the file's metadata
_CSV = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in KEYS})  # 000123 is a key, not a number
_SHA256 = "^[0-9a-f]{64}$"

Values = npt.NDArray[np.float32]  # nan where there is no value
Digests = npt.NDArray[np.bytes_]  # sha256 in hexadecimal, 64 bytes each


@dataclass(frozen=True)
class Outside:
    """Scores from outside, by name, of the images with `digests` (N,), which ascend."""

    digests: Digests
    values: Mapping[str, Values]  # (N,) each, in the order of the names
    trained: frozenset[str] = frozenset()  # names that the run was trained with

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores."""
        return tuple(self.values)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns that the scores are in a scored pool."""
        return pa.schema([pa.field(name, pa.float32()) for name in self.names])

    def of(self, sha256: pa.Array | pa.ChunkedArray | Sequence[str]) -> dict[str, Values]:
        """Look up images by their sha256 (M,): the values (M,) of each name, nan where there is none."""
        wanted = _digests(sha256)
        if not len(self.digests):
            return {name: np.full(len(wanted), np.nan, dtype=np.float32) for name in self.names}
        at = np.searchsorted(self.digests, wanted).clip(max=len(self.digests) - 1)
        there = self.digests[at] == wanted
        return {name: np.where(there, values[at], np.float32(np.nan)) for name, values in self.values.items()}

    def only(self, names: Sequence[str]) -> "Outside":
        """Those with some names, in that order."""
        return Outside(self.digests, {name: self.values[name] for name in names}, self.trained)

    @property
    def widths(self) -> dict[str, int]:
        """Number of features, one each, of the witnesses that the scores are for a panel."""
        return {f"{WITNESS}{name}": 1 for name in self.names}

    def join(self, tiles_MF: "Tensor", sha256: Sequence[str]) -> "Tensor":
        """Put the scores of M images between their features and the last column, their fold (`models.panel`).

        Without scores the features stay as they are, float16.
        """
        import torch  # imported here: most readers of scores need no torch

        if not self.names:
            return tiles_MF
        values = [torch.from_numpy(value)[:, None] for value in self.of(sha256).values()]
        return torch.cat((tiles_MF[:, :-1].float(), *values, tiles_MF[:, -1:].float()), 1)

    def align(self, rows: Rows) -> dict[str, Values]:
        """Values (N,) of each name for rows of a pool, nan where there is none."""
        return self.of(rows.columns(["sha256"])["sha256"]) if self.values else {}

    def columns(self, sha256: pa.Array | pa.ChunkedArray, names: Sequence[str]) -> dict[str, pa.Array]:
        """Columns of some `names` for images with these sha256 (M,): float32, null where there is no value."""
        found = self.of(sha256) if names else {}
        return {name: pa.array(found[name], mask=np.isnan(found[name])) for name in names}


NONE = Outside(np.zeros(0, dtype="S64"), {})


@dataclass
class _Source:
    """One NAME=FILE, while it is checked."""

    name: str
    path: Path
    option: str = field(init=False)

    def __post_init__(self) -> None:
        self.option = f"--scores {self.name}={self.path}"

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.option}: {what}")


def read(pool: Pool, given: Sequence[str]) -> Outside:
    """Read scores from outside, each given as "NAME=FILE".

    Values may be missing (null or nan). Raises BadInput for a name that is not an identifier or is taken, for a file
    without a usable column of keys or values, for duplicate images, infinite values, and a file of which no image is in
    the pool.
    """
    sources = [_parsed(text) for text in given]
    for i, source in enumerate(sources):
        if source.name.lower() in (other.name.lower() for other in sources[:i]):
            raise source.wrong("another --scores has this name. Give each file a name of its own.")
    if not sources:
        return NONE
    manifest = pa.concat_tables(pool.tables(["key", "sha256"]))
    outside = NONE
    for source in sources:
        outside = _merged(outside, _of_source(source, manifest))
    return outside


def store(run: Path, outside: Outside, *, trained: bool, folder: Path | None = None) -> Outside:
    """Write outside.parquet in a run, or in its `folder` of a pool, and return all that it holds then.

    Training (`trained`) replaces what was there. Otherwise `outside` is added to it, and replaces scores of the same
    names; Incompatible for a name that the run was trained with.
    """
    folder = folder or run
    if trained:
        kept = Outside(outside.digests, outside.values, frozenset(outside.names))
    else:
        before, trained_with = load(folder), load(run).trained
        for name in outside.names:
            if name.lower() in {each.lower() for each in trained_with}:
                raise Incompatible(
                    f"--scores {name}: {run} was trained with scores of this name. Train again to replace them, or "
                    "give these another name."
                )
        replaced = {name.lower() for name in outside.names}
        others = {name: values for name, values in before.values.items() if name.lower() not in replaced}
        kept = _merged(Outside(before.digests, others, before.trained), outside)
    if not kept.values:
        (folder / FILE).unlink(missing_ok=True)
        return kept
    fixed = pa.Array.from_buffers(pa.binary(64), len(kept.digests), [None, pa.py_buffer(kept.digests)])
    digests = fixed.cast(pa.binary()).cast(pa.string())
    values = [pa.array(each, mask=np.isnan(each)) for each in kept.values.values()]
    schema = pa.schema([pa.field("sha256", pa.string(), nullable=False), *kept.schema]).with_metadata(
        {_TRAINED: " ".join(sorted(kept.trained))}
    )
    with replacing(folder / FILE) as temporary:
        pq.write_table(pa.table([digests, *values], schema=schema), temporary)
    return kept


def of_pool(run: Path, folder: Path) -> Outside:
    """Scores that a run has of a pool: those in the pool's `folder`, and those that it was trained with."""
    found = load(run)
    return found if folder == run else _merged(found.only(sorted(found.trained)), load(folder))


def load(run: Path) -> Outside:
    """Read run/outside.parquet; a run without one has no scores from outside. CorruptShard if it is damaged."""
    path = run / FILE
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        return NONE
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, why(error)) from None
    names = table.column_names[1:]
    if table.column_names[:1] != ["sha256"] or any(table[name].type != pa.float32() for name in names):
        raise _damaged(path, f"its columns are {', '.join(table.column_names)}")
    if not pc.all(pc.match_substring_regex(table["sha256"], _SHA256), skip_nulls=False).as_py():
        raise _damaged(path, "a sha256 in it is not one")
    digests = _digests(table["sha256"])
    if (digests[1:] <= digests[:-1]).any():
        raise _damaged(path, "it is not sorted")
    trained = (table.schema.metadata or {}).get(_TRAINED, b"").decode().split()
    return Outside(digests, {name: _floats(table[name]) for name in names}, frozenset(trained))


def _damaged(path: Path, what: str) -> CorruptShard:
    return CorruptShard(f"{path} cannot be used ({what}). Remove it and give --scores again.")


def _parsed(text: str) -> _Source:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise BadInput(f"--scores {text}: write NAME=FILE, as in --scores aesthetic=aesthetic.parquet.")
    source = _Source(name, Path(os.path.expanduser(path)))  # noqa: PTH111 - Path's own raises for ~nobody
    if not (name.isascii() and name.isidentifier()):
        raise source.wrong(
            f"{name!r} cannot name a column. Use letters, digits and underscores, and begin with a letter."
        )
    if name.lower() in TAKEN:
        raise source.wrong(f"{name!r} is taken by a column of curate. Choose another name.")
    return source


def _of_source(source: _Source, manifest: pa.Table) -> Outside:
    table = _table(source)
    by = next((name for name in KEYS if name in table.column_names), None)
    if by is None:
        raise source.wrong(f"there is no column key or sha256, only {', '.join(table.column_names)}. Add one of them.")
    keys, values = _keys(source, table[by], by), _values(source, table, by)
    there = pc.is_in(keys, value_set=manifest[by].combine_chunks())
    if not len(keys):
        raise source.wrong("it has no rows. List the scored images in it.")
    if not pc.any(there).as_py():
        raise source.wrong(
            f"none of its {len(keys)} images is in the pool (the first {by} is {keys[0].as_py()!r}). Give scores of "
            "this pool's images."
        )
    if by == "key":
        rows = pc.index_in(keys, value_set=manifest["key"].combine_chunks()).drop_null()
        keys, values = manifest["sha256"].take(rows), values[there.to_numpy(zero_copy_only=False)]
    digests, first = np.unique(_digests(keys), return_index=True)
    return Outside(digests, {source.name: values[first]})


def _table(source: _Source) -> pa.Table:
    """Read the columns of somebody else's file that may have keys or values."""
    if not source.path.is_file():
        raise source.wrong("there is no such file. Give a .parquet or a .csv.")
    suffix = source.path.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise source.wrong("it is neither a .parquet nor a .csv. Convert it to one of them.")
    try:
        if suffix == ".csv":
            table = pyarrow.csv.read_csv(source.path, convert_options=_CSV)
        else:
            with pq.ParquetFile(source.path) as file:
                flat = [each.name for each in file.schema_arrow if not pa.types.is_nested(each.type)]
                table = file.read(columns=flat)
    except (pa.ArrowException, OSError) as error:
        raise source.wrong(f"it cannot be read ({why(error)}). Write it again.") from None
    if len(set(table.column_names)) < table.num_columns:
        raise source.wrong("two of its columns have the same name. Rename one.")
    return table


def _keys(source: _Source, column: pa.ChunkedArray, by: str) -> pa.Array:
    """The keys (N,) of a file as text, each once."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise source.wrong(f"column {by!r} holds {kind}, not text. Write each {by} as text.")
    keys = column.cast(pa.string()).combine_chunks()
    if keys.null_count:
        row = pc.index(pc.is_null(keys), True).as_py() + 1
        raise source.wrong(f"column {by!r} is empty in row {row}. Fill it in, or remove the row.")
    if by == "sha256":
        keys = pc.utf8_lower(keys)
        if (row := pc.index(pc.match_substring_regex(keys, _SHA256), False).as_py()) >= 0:
            raise source.wrong(
                f"{keys[row].as_py()[:80]!r} in row {row + 1} is not a sha256 of 64 hexadecimal digits. Fix it."
            )
    if pc.count_distinct(keys).as_py() < len(keys):
        counts = keys.value_counts()
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise source.wrong(f"{by} {twice} has more than one row. Keep one row for each image.")
    return keys


def _values(source: _Source, table: pa.Table, by: str) -> Values:
    """The values (N,) of a file; nan where there is none."""
    others = [name for name in table.column_names if name not in KEYS]
    numeric = [name for name in others if _is_number(table.schema.field(name).type)]
    named = next((name for name in (source.name, *VALUES) if name in others), None)
    name = named or (numeric[0] if len(numeric) == 1 else None)
    if name is None:
        found = f"the columns with numbers are {', '.join(numeric)}" if numeric else "no other column holds numbers"
        raise source.wrong(
            f"which column has the values? There is no {source.name!r} or 'value', and {found}. Name it value."
        )
    if name not in numeric:
        raise source.wrong(
            f"column {name!r} holds {table.schema.field(name).type}, not numbers. Write numbers into it."
        )
    values = _floats(table[name])
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax()) + 1
        raise source.wrong(f"column {name!r} is infinite in row {row}, or too large. Leave such values out.")
    if np.isnan(values).all() and len(values):
        raise source.wrong(f"column {name!r} has no value at all. Write numbers into it.")
    return values


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _floats(column: pa.ChunkedArray) -> Values:
    with np.errstate(over="ignore"):  # what is too large is infinite, and refused
        wide = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
        return np.asarray(wide, dtype=np.float32)


def _digests(sha256: pa.Array | pa.ChunkedArray | Sequence[str]) -> Digests:
    """sha256 (N,) in hexadecimal as an array of bytes, without a Python object for each."""
    array = pa.array(sha256, pa.string()) if isinstance(sha256, Sequence) else sha256.cast(pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.string())
    fixed = array.cast(pa.binary()).cast(pa.binary(64))
    return np.frombuffer(fixed.buffers()[1], dtype="S64", count=len(fixed), offset=64 * fixed.offset)


def _merged(one: Outside, other: Outside) -> Outside:
    """The scores of both; their names differ."""
    digests = np.union1d(one.digests, other.digests)
    values = {}
    for part in (one, other):
        at = np.searchsorted(digests, part.digests)
        for name, given in part.values.items():
            values[name] = np.full(len(digests), np.nan, dtype=np.float32)
            values[name][at] = given
    return Outside(digests, values, one.trained | other.trained)
