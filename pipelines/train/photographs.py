"""Trains on photographs: features of a frozen network stand for pixels, and a panel of witnesses for the detector.

The features of the pool are computed once and kept beside it (`pipelines.pool.features`). From them come the panel
(`models.panel`), which scores the whole pool before the classifier's first step, and, with a frozen backbone, the views
that the classifier is trained on.
"""

from dataclasses import dataclass

from torch import Tensor

from models.panel import Panel
from pipelines.pool import pixels
from pipelines.pool.features import FeatureReader, FeatureStore
from pipelines.pool.known import Known
from pipelines.progress import OnTick
from pipelines.train.config import TrainConfig
from pipelines.train.data import Data

FITTED_IMAGES = 20_000  # of the pool: what they teach the panel, more would not, because the labeled images are few
DECLARED = 0.5  # weight of an image that declares what it is, against one that a person knows


@dataclass(frozen=True)
class Photographs:
    """A training on photographs, ready for its first step."""

    data: Data  # with features in place of the labeled images' pixels, where the backbone is frozen
    images: pixels.InMemory | None  # features of the pool's rows; None where the backbone is trained
    panel: Panel
    scores: Tensor  # (N,) float32 of the pool's rows, each by models that have not seen it
    of_labeled: Tensor  # (L,) of the labeled images, marked ones aside
    of_known: Tensor  # (S,) of the known synthetic images, in the pool or not


def prepare(config: TrainConfig, data: Data, known: Known, reader: FeatureReader, on_tick: OnTick) -> Photographs:
    """Read or compute all features, fit the panel, and score the pool."""
    store = FeatureStore(data.pool, reader)
    examples = data.training.examples
    labeled = store.files(examples.keys, examples.contents, on_tick)
    further = store.files([str(file.path) for file in known.files], [file.content for file in known.files], on_tick)
    pool = _Gathered.of(store, data, keep_views=True, on_tick=on_tick)
    return labeled, further, pool
