"""The synthetic share by domain: the host of each image's `url` in the crawl's metadata, or else its source.

    run/domains.parquet    DOMAIN_SCHEMA, a row for each of the largest domains, the largest first

A bound compares a domain's images with the same labeled real images as the pool as a whole, so it holds if a domain's
real images look like these. One of twenty bounds of 95 % would be false; here all of them together hold with 95 %
confidence (Bonferroni), and each is therefore lower than it would be alone.

The manifest does not hold the url, so it is read from the JSON beside each image: on a disk a short read after the
image, a few microseconds. In an object store that would be a request for each image; there the source is the domain.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.pool.manifest import Pool, read_parquet
from pipelines.run.quality import Quality
from pipelines.storage.atomic import replacing
from pipelines.storage.shards import end_of_samples, member_span, read_samples_at, sample_spans, sample_start

if TYPE_CHECKING:
    from torch import Tensor

FILE = "domains.parquet"
CONFIDENCE = 0.95  # of all rows together
LARGEST = 20  # domains that are listed
FEWEST = 30  # images of a domain that is listed
UNKNOWN = "unknown"  # a url without a host
OTHER = "other domains"  # all that come after the first MOST
MOST = 100_000  # domains that are told apart, so that memory stays bounded
_LONGEST = 253  # characters of a host name
_FAINT = 0.6  # AUROC below which no share of a domain is estimated
_URLS = ("url", "URL", "image_url")

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
    rows = pool.rows(shard, ["key", "source", "offset", "num_bytes"])
    sources = [_of_source(source) for source in rows["source"].to_pylist()]
    tar = pool.tar(shard)
    if not isinstance(tar, Path) or not rows.num_rows:
        return sources
    offset, num_bytes = rows["offset"].to_numpy(), rows["num_bytes"].to_numpy()
    _, stops = sample_spans(offset, end_of_samples(tar))
    starts = [
        member_span(sample_start(at), size).stop for at, size in zip(offset.tolist(), num_bytes.tolist(), strict=True)
    ]
    spans = [(start, stop - start) for start, stop in zip(starts, stops.tolist(), strict=True)]
    beside = read_samples_at(tar, spans)
    found = (_host(members.get("json", b"")) for _, members in beside)
    return [host or source for host, source in zip(found, sources, strict=True)]


def _host(metadata: bytes) -> str | None:
    """Host of the url in a sample's JSON, in lower case without `www.`; None if it has no url."""
    try:
        values = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    url = next((values[name] for name in _URLS if isinstance(values.get(name), str)), None)
    if url is None:
        return None
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    host = (host or UNKNOWN).removeprefix("www.")[:_LONGEST]
    return host.encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs


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
