"""The synthetic share by domain: the manifest's `domain`, the host of an image's url, or else its source.

    run/domains.parquet    DOMAIN_SCHEMA, a row for each of the largest domains, the largest first

A bound compares a domain's images with the same labeled real images as the pool as a whole, so it holds if a domain's
real images look like these. One of twenty bounds of 95 % would be false; here all of them together hold with 95 %
confidence (Bonferroni), and each is therefore lower than it would be alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.pool.manifest import Pool, read_parquet
from pipelines.run.quality import Quality
from pipelines.storage.atomic import replacing

if TYPE_CHECKING:
    from torch import Tensor

FILE = "domains.parquet"
CONFIDENCE = 0.95  # of all rows together
LARGEST = 20  # domains that are listed
FEWEST = 30  # images of a domain that is listed
UNKNOWN = "unknown"  # a url without a host
OTHER = "other domains"  # all that come after the first MOST
MOST = 100_000  # domains that are told apart, so that memory stays bounded
_FAINT = 0.6  # AUROC below which no share of a domain is estimated
COLUMNS = ("domain", "url", "source")  # of the manifest, that tell an image's domain

DOMAIN_SCHEMA = pa.schema(
    [
        pa.field("domain", pa.string(), nullable=False),  # host of the url, or the source
        pa.field("num_images", pa.int64(), nullable=False),
        pa.field("share_at_least", pa.float64(), nullable=False),  # synthetic; all rows hold together with 95 %
        pa.field("share_estimate", pa.float64()),  # null where the detector is too weak to estimate it
        pa.field("declared_share", pa.float64(), nullable=False),  # that declare to be synthetic
    ]
)


def of_shard(pool: Pool, shard: str) -> list[str]:
    """Domain (N,) of each image of a shard, in the order of its manifest."""
    return of_rows(pool.rows(shard, COLUMNS))


def of_rows(rows: pa.Table) -> list[str]:
    """Domain (N,) of each of some rows of a manifest, which have COLUMNS."""
    columns = (rows[name].to_pylist() for name in COLUMNS)
    return [
        domain or (_of_source(source) if url is None else UNKNOWN) for domain, url, source in zip(*columns, strict=True)
    ]


def _of_source(source: str) -> str:
    """A crawl's file or folder by the last two parts of its name."""
    return "/".join(PurePosixPath(source).parts[-2:])


class Tally:
    """Domain, score and declaration of every image, shard after shard: some 13 bytes an image in memory."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._parts: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]] = []

    def add(self, domains: Sequence[str], scores_N: npt.NDArray[np.float32], declared: Iterable[str | None]) -> None:
        """Count the images of a shard: their domains, scores (N,) and what they declare."""
        numbers = [self._numbered(domain) for domain in domains]
        synthetic = np.array([each == "synthetic" for each in declared], dtype=bool)
        self._parts.append((np.array(numbers, dtype=np.int32), scores_N.astype(np.float32), synthetic))

    def _numbered(self, domain: str) -> int:
        known = domain in self._number or len(self._number) < MOST
        return self._number.setdefault(domain if known else OTHER, len(self._number))

    def table(self, scores_L: "Tensor", quality: Quality | None) -> pa.Table:
        """The largest domains, DOMAIN_SCHEMA, from the scores (L,) of labeled real images; none without an image."""
        import torch  # imported here and below: whoever only reads the file needs no torch, which takes seconds

        if not self._parts:
            return DOMAIN_SCHEMA.empty_table()
        number_N, scores_N, declared_N = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        names = list(self._number)
        counts = Counter(number_N.tolist()).most_common(LARGEST)
        listed = [number for number, count in counts if count >= FEWEST]
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(listed))
        rows = []
        for number in listed:
            own_N = number_N == number
            declared_share, own = float(declared_N[own_N].mean()), torch.from_numpy(scores_N[own_N])
            shares = _shares(own, scores_L, declared_share, confidence, quality)
            rows.append({"domain": names[number], "num_images": len(own), **shares})
        return pa.Table.from_pylist(rows, schema=DOMAIN_SCHEMA)


def _shares(
    scores_N: "Tensor", scores_L: "Tensor", declared_share: float, confidence: float, quality: Quality | None
) -> dict[str, float | None]:
    """Bound and estimate of a domain's synthetic share.

    The estimate takes the detector to tell a domain's synthetic images as well as those of the whole pool.
    """
    from models import estimates

    shown = estimates.share_at_least(scores_N, scores_L, confidence, spread=estimates.CROSS_FITTED)
    at_least, estimate = max(shown, declared_share), None
    if quality is not None and quality.auroc is not None and quality.auroc >= _FAINT and shown:
        excess = estimates.excess(scores_N, scores_L) / (quality.auroc - 0.5)
        estimate = min(1.0, max(at_least, excess))
    return {"share_at_least": at_least, "share_estimate": estimate, "declared_share": declared_share}


def save(run: Path, table: pa.Table) -> None:
    """Write run/domains.parquet."""
    with replacing(run / FILE) as temporary:
        pq.write_table(table, temporary)


def load(run: Path) -> pa.Table:
    """Read run/domains.parquet; an empty table if there is none."""
    return read_parquet(run / FILE) if (run / FILE).exists() else DOMAIN_SCHEMA.empty_table()
