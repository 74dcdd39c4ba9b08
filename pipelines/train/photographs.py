"""Trains on photographs: features of a frozen network stand for pixels, and a panel of witnesses for the detector.

The features of the pool are computed once and kept beside it (`pipelines.pool.features`). From them come the panel
(`models.panel`), which scores the whole pool before the classifier's first step, and, with a frozen backbone, the views
that the classifier is trained on.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.panel import Examples, Panel
from pipelines.images.views import Views
from pipelines.pool import known as known_images
from pipelines.pool import labeled, pixels
from pipelines.pool.features import FeatureReader, FeatureStore
from pipelines.pool.known import Known
from pipelines.pool.rows import Rows
from pipelines.progress import OnTick
from pipelines.run import outside
from pipelines.train.config import TrainConfig
from pipelines.train.data import Data

FITTED_IMAGES = 20_000  # of the pool: more teach the panel nothing more, because the labeled images are few
DECLARED = 0.5  # weight of an image that declares what it is, against one that a person knows


@dataclass(frozen=True)
class Prepared:
    """Features of a training, and the panel with its scores, each by models that have not seen the image."""

    data: Data
    images: pixels.InMemory | None  # features of the pool's rows; None where the backbone is trained on pixels
    panel: Panel
    pool: Tensor  # (N,) float32 scores of the rows, which are not labeled
    labeled: Tensor  # (L,) of the labeled images, those that marks labeled aside
    known: Tensor  # (S,) of the synthetic images that are known
    known_by: Literal["given", "declared"]  # whether a person knows any of them, or only the files say so
    known_share: float  # of the pool that is known to be synthetic


def prepare(config: TrainConfig, data: Data, reader: FeatureReader, device: torch.device, on_tick: OnTick) -> Prepared:
    """Read or compute the features of the pool, fit the panel to them, and score the pool.

    Raises BadInput for known synthetic images that cannot be used, and for scores from outside that do not fit.
    """
    training, is_frozen = data.training, bool(config.network.frozen)
    known = known_images.read(
        training.rows,
        folder=config.known_synthetic,
        ignore_declared=config.ignore_declared,
        labeled=training.examples.digests,
    )
    with ThreadPoolExecutor() as threads:
        names, contents = [file.path.name for file in known.files], [file.content for file in known.files]
        of_known = reader.batch(names, contents, threads).tiles if names else None
    labeled_set = training.examples if is_frozen else labeled.read(config.labeled, reader)
    of_rows = _gather(FeatureStore(data.pool, reader), training.rows, on_tick, with_views=is_frozen)
    columns = outside.read(data.pool, config.scores)
    outside.store(config.run, columns, trained=True)
    sha256 = training.rows.columns(["sha256"])["sha256"].to_pylist() if columns.values else []
    of_rows = Views(of_rows.images, with_outside(of_rows.tiles, columns, sha256))
    of_labeled = with_outside(labeled_set.views.tiles, columns, labeled_set.sha256)
    of_known = with_outside(
        of_rows.tiles[:0, : -1 - len(columns.names)] if of_known is None else of_known,
        columns,
        [file.sha256 for file in known.files],
    )
    panel = Panel(reader.widths | {f"outside_{name}": 1 for name in columns.names}).to(device)
    return _fit(panel, data, known, of_rows, of_labeled, of_known, is_frozen)


def _gather(store: FeatureStore, rows: Rows, on_tick: OnTick, *, with_views: bool) -> Views:
    """Features of rows of a pool, in their order; without views `images` is empty."""
    images, tiles = [], []
    for number, views in store.shards(on_tick):
        mine = torch.from_numpy(np.isin(Rows.of_shard(store.pool, number).key, rows.key[rows.shard == number]))
        tiles.append(views.tiles[mine])
        images.append(views.images[mine] if with_views else views.images[:0])
    return Views(torch.cat(images), torch.cat(tiles))


def with_outside(tiles_MF: Tensor, columns: outside.Outside, sha256: Sequence[str]) -> Tensor:
    """Features (M, F + 1) with the scores from outside before the last column, the fold; as they are without any."""
    if not columns.names:
        return tiles_MF
    values = [torch.from_numpy(value)[:, None] for value in columns.of(sha256).values()]
    return torch.cat((tiles_MF[:, :-1].float(), *values, tiles_MF[:, -1:].float()), 1)


def _fit(
    panel: Panel, data: Data, known: Known, of_rows: Views, of_labeled: Tensor, of_known: Tensor, is_frozen: bool
) -> Prepared:
    device = panel.votes.device
    rows_NF, labeled_LF, known_SF = (part.to(device) for part in (of_rows.tiles, of_labeled, of_known))
    real_N, synthetic_N, given = _weights(data, known, device)
    step = max(1, -(-len(rows_NF) // FITTED_IMAGES))
    used_N = (torch.arange(len(rows_NF), device=device) % step == 0) | (real_N > 0) | (synthetic_N > 0)
    unmarked = data.num_labeled - data.training.num_labeled_by_marks
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
    scores_N = panel.score(rows_NF)
    if is_frozen:
        views = data.training.examples.views
        of_examples = replace(data.training.examples, views=Views(views.images, of_labeled))
        data = replace(data, training=replace(data.training, examples=of_examples))
    return Prepared(
        data=data,
        images=pixels.InMemory(Views(of_rows.images.to(device), rows_NF)) if is_frozen else None,
        panel=panel,
        pool=scores_N,
        labeled=panel.score(labeled_LF[:unmarked]),
        known=torch.cat((scores_N[synthetic_N > 0], panel.score(known_SF))),
        known_by="given" if given + len(known_SF) else "declared",
        known_share=float((synthetic_N > 0).sum()) / data.pool.num_images,
    )


def _weights(data: Data, known: Known, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """How much each row is known to be real (N,) and synthetic (N,), and how many a person knows to be synthetic."""
    listed = torch.from_numpy(known.listed).to(device)
    synthetic_N = torch.from_numpy(known.declared_synthetic).to(device).double() * DECLARED
    synthetic_N[listed] = 1.0
    real_N = torch.from_numpy(known.declared_camera).to(device).double() * DECLARED
    given = int(listed.sum())
    if data.training.marked:
        real, synthetic = data.training.marked.real.to(device), data.training.marked.synthetic.to(device)
        real_N[real], synthetic_N[real] = 1.0, 0.0
        real_N[synthetic], synthetic_N[synthetic] = 0.0, 1.0
        given += len(synthetic)
    return real_N, synthetic_N, given
