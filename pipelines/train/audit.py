"""Audits a panel for confounds while training: facts of the files, not of the pictures, that it may have learned.

Where labeled images and pool differ in such a fact, the panel takes the difference for a trace of synthetic images. The
report looks at more facts, for which it opens the files (`pipelines.report.confounds`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.images.appearance import size_as_seen, with_image
from pipelines.images.check import foreign_images
from pipelines.images.formats import sniff
from pipelines.pool import labeled
from pipelines.pool.rows import Rows
from pipelines.run import association

SAMPLE = 4_000  # images of the pool that are looked at

Header = tuple[str, int, int, int]  # format, width, height, bytes of a file
Facts = dict[str, list[float | str]]


def warnings(rows: Rows, source: Path, scores_N: npt.NDArray[np.float32], threshold: float) -> Iterator[str]:
    """Yield a sentence for each fact in which the labeled set of `source` differs, or that predicts the verdict.

    `scores_N` are those of the rows, of which the ones from `threshold` on are called synthetic.
    """
    chosen = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
    table = rows.columns(["format", "width", "height", "num_bytes"]).take(pa.array(chosen))
    of_pool = _facts(list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)))
    of_labeled = _facts(list(_headers(source)))
    called = scores_N[chosen] >= threshold
    for name, values in of_pool.items():
        found = association.judge(name, values, of_labeled[name], called, called.astype(np.float32))
        if association.differs(found):
            yield (
                f"The labeled images differ from the pool in {name} (by {found.difference:.0%}), and the panel may "
                "take that for a trace of synthetic images. Use labeled images that went through the same pipeline as "
                "the crawl."
            )
        if association.predicts(found):
            yield (
                f"The {name} alone predicts the verdict (AUROC {found.auroc:.2f}). Look at images of both kinds with "
                "`curate inspect` before you trust it."
            )


def _facts(headers: Sequence[Header]) -> Facts:
    return {
        "format": [kind for kind, *_ in headers],
        "shorter side": [float(min(width, height)) for _, width, height, _ in headers],
        "aspect": [round(width / height, 3) for _, width, height, _ in headers],
        "bytes per pixel": [size / (width * height) for _, width, height, size in headers],
    }


def _headers(source: Path) -> Iterator[Header]:
    """Read the header of each file of a labeled set."""
    with foreign_images():
        for path, _ in labeled.files(source):
            content = path.read_bytes()
            yield sniff(content) or "", *with_image(content, size_as_seen), len(content)
