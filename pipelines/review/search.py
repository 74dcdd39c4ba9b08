"""Finds images by text: words of what the crawl says of them.

    lighthouse                 in any of COLUMNS, in upper or lower case
    red lighthouse             both words, each in any column
    "red lighthouse" url:gif   the words as they stand, and a url that contains gif

The text is read from the manifests for each search, one shard at a time, so that it takes no memory.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.pool.manifest import Pool

COLUMNS = {"key": "key", "name": "member", "caption": "caption", "domain": "domain", "url": "url", "uid": "uid"}
MAX_TEXT = 500  # characters of a search

_TERM = re.compile(rf'(?:(?P<column>{"|".join(COLUMNS)}):)?(?:"(?P<phrase>[^"]*)"?|(?P<word>\S+))')


class Term(NamedTuple):
    """Text to look for, in one column of the manifest or in all of COLUMNS."""

    text: str
    columns: tuple[str, ...]


def terms(text: str) -> tuple[Term, ...]:
    """The terms of a search; an image is found if it has all of them."""
    found = []
    for match in _TERM.finditer(text):
        wanted = match["word"] if match["phrase"] is None else match["phrase"]
        if wanted:
            column = match["column"]
            found.append(Term(wanted, (COLUMNS[column],) if column else tuple(COLUMNS.values())))
    return tuple(found)


def search(pool: Pool, shards: Sequence[str], text: str) -> npt.NDArray[np.bool_]:
    """Which images (N,) of some shards, in their order, have all terms of a text."""
    wanted = terms(text)
    names = sorted({name for term in wanted for name in term.columns})
    parts = [_matches(pool.rows(shard, names or ["key"]), wanted) for shard in shards]
    return np.concatenate(parts)


def _matches(rows: pa.Table, wanted: Sequence[Term]) -> npt.NDArray[np.bool_]:
    found = np.ones(rows.num_rows, dtype=bool)
    for term in wanted:
        has = np.zeros(rows.num_rows, dtype=bool)
        for name in term.columns:
            has |= pc.match_substring(rows[name], term.text, ignore_case=True).fill_null(False).to_numpy()
        found &= has
    return found
