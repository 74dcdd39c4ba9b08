"""Trains on photographs: features of a frozen network stand for pixels, and a panel of witnesses for the detector.

The features of the pool are computed once and kept beside it (`pipelines.pool.features`). From them come the panel
(`models.panel`), which scores the whole pool before the classifier's first step, and, with a frozen backbone, the views
that the classifier is trained on.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.panel import Examples, Panel
from models.routed import Prior
from models.thresholds import threshold_above
from pipelines.compute import devices
from pipelines.errors import BadInput
from pipelines.images.views import Views
from pipelines.pool import known as known_images
from pipelines.pool import labeled, pixels
from pipelines.pool.features import FeatureReader, FeatureStore, FileStore
from pipelines.pool.known import Known
from pipelines.pool.rows import Rows
from pipelines.progress import OnTick
from pipelines.run import outside, quality
from pipelines.run.quality import Quality
from pipelines.train import audit, marked
from pipelines.train.config import TrainConfig
from pipelines.train.data import Data

FITTED_IMAGES = 20_000  # of the pool: more teach the panel nothing more, because the labeled images are few
# Weights of images that declare what they are, against one that a person knows. Few tools declare anything, and all the
# images of one tool are alike.
DECLARED_SYNTHETIC, DECLARED_CAMERA = 0.05, 0.2


@dataclass(frozen=True)
class Prepared:
    """Features of a training, and a panel that has scored its pool."""

    data: Data
    images: pixels.InMemory | None  # features of the pool's rows; None where the backbone is trained on pixels
    panel: Panel
    judged: "Judged"
    fingerprint: str  # of the known images and the scores from outside: a resume must find the same

    def alarms(self, config: TrainConfig) -> Iterator[str]:
        """What a person must know of the panel: confounds that it may have learned."""
        scores = self.judged.scores.cpu().numpy()
        return audit.warnings(self.data.training.rows, config.labeled, scores, self.panel.threshold.item())

    @property
    def prior(self) -> Prior:
        """What routes images between the heads."""
        measured = self.judged.quality
        share = measured.share_estimate if measured.share_estimate is not None else measured.share_at_least
        return Prior(self.panel, self.judged.scores, share, (measured.share_at_least, measured.share_at_most or 1.0))


def prepare(config: TrainConfig, data: Data, reader: FeatureReader, device: torch.device, on_tick: OnTick) -> Prepared:
    """Read or compute the features of the pool, fit the panel to them, and score the pool.

    Raises BadInput for known synthetic images that cannot be used, and for scores from outside that do not fit.
    """
    training, is_frozen = data.training, bool(config.network.frozen)
    _check_memory(data, reader, is_frozen)
    columns = outside.read(data.pool, config.scores)  # what is wrong with it is said before the features take minutes
    known = known_images.read(
        training.rows,
        folder=config.known_synthetic,
        ignore_declared=config.ignore_declared,
        labeled=training.examples.digests,
    )
    files = FileStore(data.pool, reader)
    with ThreadPoolExecutor() as threads:
        names, contents = [file.path.name for file in known.files], [file.content for file in known.files]
        of_known = files.batch(names, contents, threads).tiles if names else None
    if is_frozen:
        labeled_set = training.examples
    else:
        of_files = labeled.read(config.labeled, files)
        labeled_set = marked.join(data.pool, of_files, config.run, files).examples
    store = FeatureStore(data.pool, reader)
    store.compute_own(on_tick)
    of_rows = _gather(store, training.rows, on_tick, with_views=is_frozen)
    if devices.is_first():
        outside.store(config.run, columns, trained=True)
    sha256 = training.rows.columns(["sha256"])["sha256"].to_pylist() if columns.values else []
    of_rows = Views(of_rows.images, columns.join(of_rows.tiles, sha256))
    of_labeled = columns.join(labeled_set.views.tiles, labeled_set.sha256)
    of_known = of_rows.tiles[:0] if of_known is None else columns.join(of_known, [file.sha256 for file in known.files])
    panel = Panel(reader.widths | columns.widths).to(device)
    real_N, synthetic_N = _weights(data, known)
    given = bool(known.listed.any()) or bool(known.files)
    features = of_rows.tiles.to(device), of_labeled.to(device), of_known.to(device)
    unmarked = data.num_labeled - training.num_labeled_by_marks
    # Those that a folder holds are taken for a sample of all; declared ones would be mixed in as one, too.
    measures = torch.from_numpy(known.listed if given else known.declared_synthetic)
    weights = real_N.to(device), synthetic_N.to(device), measures.to(device)
    judged = judge(panel, Evidence(*features, *weights, unmarked, given))
    fingerprint = _fingerprint(known, columns)
    if not is_frozen:
        return Prepared(data, None, panel, judged, fingerprint)
    examples = replace(training.examples, views=Views(training.examples.views.images, of_labeled))
    data = replace(data, training=replace(training, examples=examples))
    return Prepared(data, pixels.InMemory(Views(of_rows.images.to(device), features[0])), panel, judged, fingerprint)


def _check_memory(data: Data, reader: FeatureReader, is_frozen: bool) -> None:
    """Raise BadInput where the features of the pool do not fit into memory."""
    needed = data.num_unlabeled * (reader.bytes_of_tiles + (reader.bytes_of_views if is_frozen else 0))
    if needed > 0.8 * pixels.available_bytes():
        raise BadInput(
            f"{data.pool.root}: the features of its {data.num_unlabeled} images take {needed / 1e9:.0f} GB, more than "
            "the memory. Train on a part of the crawl, ingested into a pool of its own; then score this pool with "
            "that run."
        )


def _gather(store: FeatureStore, rows: Rows, on_tick: OnTick, *, with_views: bool) -> Views:
    """Features of rows of a pool, in their order; without views `images` is empty."""
    images, tiles = [], []
    for number, views in store.shards(on_tick):
        mine = torch.from_numpy(np.isin(Rows.of_shard(store.pool, number).key, rows.key[rows.shard == number]))
        tiles.append(views.tiles[mine])
        images.append(views.images[mine] if with_views else views.images[:0])
    return Views(torch.cat(images), torch.cat(tiles))


class Evidence(NamedTuple):
    """What is known before a panel is fitted: features (M, F + 1) with the fold last, and weights of the rows."""

    rows: Tensor  # (N, F + 1) of the pool's images that are not labeled
    labeled: Tensor  # (L, F + 1), those that marks labeled last
    known: Tensor  # (S, F + 1) of synthetic images outside the pool
    real: Tensor  # (N,) float64, how surely each row is known to be real, 0..1
    synthetic: Tensor  # (N,) float64, or synthetic
    measures: Tensor  # (N,) bool, known to be synthetic by no mark: marks go by the scores, which they thus flatter
    num_unmarked: int  # labeled images that marks have not labeled: a random sample of the real ones
    given: bool  # whether a folder has any of these, or only the files say so


class Judged(NamedTuple):
    """Scores of the rows by a fitted panel, and how good it is; all by models that have not seen the image."""

    scores: Tensor  # (N,) float32
    quality: Quality
    held_out: tuple[float, ...]  # probabilities of the labeled images, sorted
    unsure_from: float  # probability that leaves the estimated share of the pool above it; 0.5 leaves the lower bound


def judge(panel: Panel, evidence: Evidence) -> Judged:
    """Fit a panel, score the pool, measure the panel, and set its threshold."""
    rows_NF, labeled_LF, known_SF, real_N, synthetic_N, measures_N, unmarked, given = evidence
    device = rows_NF.device
    step = max(1, -(-len(rows_NF) // FITTED_IMAGES))
    used_N = (torch.arange(len(rows_NF), device=device) % step == 0) | (real_N > 0) | (synthetic_N > 0)
    counts = torch.tensor([int(used_N.sum()), len(labeled_LF), len(known_SF)], device=device)
    kind = torch.arange(3, device=device).repeat_interleave(counts)
    ones_L, ones_S = (torch.ones(len(part), dtype=torch.float64, device=device) for part in (labeled_LF, known_SF))
    examples = Examples(
        pool=kind == 0,
        labeled=(kind == 1) & (torch.arange(len(kind), device=device) < counts[0] + unmarked),
        real=torch.cat((real_N[used_N], ones_L, 0 * ones_S)),
        synthetic=torch.cat((synthetic_N[used_N], 0 * ones_L, ones_S)),
    )
    panel.fit(torch.cat((rows_NF[used_N], labeled_LF, known_SF)), examples)
    scores_N, scores_L = panel.score(rows_NF), panel.score(labeled_LF[:unmarked])
    measured = quality.measure(
        scores_N.cpu(),
        scores_L.cpu(),
        torch.cat((scores_N[measures_N], panel.score(known_SF))).cpu(),
        known_by="given" if given else "declared",
        declared_share=float((synthetic_N > 0).double().mean()),
        cross_fitted=True,
    )
    panel.threshold.copy_(threshold_above(scores_N.double(), measured.share_at_least))
    held_out = (scores_L - panel.threshold).sigmoid().sort().values
    estimate = max(measured.share_at_least, measured.share_estimate or 0.0)
    unsure_from = (threshold_above(scores_N.double(), estimate) - panel.threshold).sigmoid().item()
    return Judged(scores_N, measured, tuple(held_out.tolist()), unsure_from)


def _fingerprint(known: Known, columns: outside.Outside) -> str:
    digest = hashlib.sha256()
    for part in (known.declared_synthetic, known.declared_camera, known.listed, columns.digests):
        digest.update(part.tobytes())
    for file in known.files:
        digest.update(file.sha256.encode())
    for name, values in columns.values.items():
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:16]


def _weights(data: Data, known: Known) -> tuple[Tensor, Tensor]:
    """How surely each row is real (N,) and synthetic (N,)."""
    synthetic_N = torch.from_numpy(known.declared_synthetic).double() * DECLARED_SYNTHETIC
    synthetic_N[torch.from_numpy(known.listed)] = 1.0
    real_N = torch.from_numpy(known.declared_camera).double() * DECLARED_CAMERA
    if data.training.marked:
        real, synthetic = data.training.marked.real, data.training.marked.synthetic
        real_N[real], synthetic_N[real] = 1.0, 0.0
        real_N[synthetic], synthetic_N[synthetic] = 0.0, 1.0
    return real_N, synthetic_N
