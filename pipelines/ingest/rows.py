"""Reads the images of a parquet file, each with the other columns of its row as JSON."""

from collections.abc import Iterator
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import first_line
from pipelines.images.formats import sniff
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.columns import as_json, described, images, in_a_line, values
from pipelines.ingest.listing import open_source
from pipelines.ingest.record import Record
from pipelines.ingest.sources import ParquetUnit

_ROWS_AT_ONCE = 64
_MAX_LABEL = 4096  # characters of a path
_MAX_UNREAD = 100_000  # rejects for rows that cannot be read


def read_rows(unit: ParquetUnit) -> Iterator[Record]:
    """Yield the images of each row of a unit, or one reject for a row without one."""
    row = 0
    with open_source(unit.source) as file:
        try:
            # Buffered, and nothing read ahead, because a whole row group of images might not fit into memory.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            others = described(parquet.schema_arrow, unit.columns)
            columns = [*unit.columns, *others]
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, unit.row_groups, columns, use_threads=False):
                found = zip(*(images(batch.column(name)) for name in unit.columns), strict=True)
                texts = [values(batch.column(name)) for name in others]
                for number, of_columns in enumerate(found):
                    text = {name: column[number] for name, column in zip(others, texts, strict=True)}
                    sidecars = {"json": as_json(text)} if text else {}
                    yield from _records(f"row {unit.first_row + row}", list(chain(*of_columns)), sidecars)
                    row += 1
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # an error of the disk, not of Arrow about the content
            yield from unread_rows(unit, row, f"the parquet file is damaged: {first_line(error)}")


def _records(name: str, found: list[tuple[bytes | None, str | None]], sidecars: dict[str, bytes]) -> Iterator[Record]:
    """Yield each image of a row, from (bytes, path) of each; else what is in their place; else a reject."""
    there = [(content, path) for content, path in found if content is not None]
    sound = [each for each in there if sniff(each[0])]
    for content, path in sound or there[:1]:
        yield Record(in_a_line(path, _MAX_LABEL) if path else name, content, sidecars)
    if not there:
        label = next((path for _, path in found if path), None)
        detail = "no bytes in the image column" + ("s" if len(found) > 1 else "")
        yield Record(in_a_line(label, _MAX_LABEL) if label else name, Reject(Reason.MISSING, detail), {})


def unread_rows(unit: ParquetUnit, row: int, detail: str) -> Iterator[Record]:
    """Yield a reject for each row of a unit from `row` on, at least one."""
    first = max(min(row, unit.num_rows - 1), 0)  # rows with several images make more records than rows
    for rest in range(first, min(unit.num_rows, first + _MAX_UNREAD)):
        yield Record(f"row {unit.first_row + rest}", Reject(Reason.INCOMPLETE_ARCHIVE, detail), {})
