"""A trained model that scores images given as bytes."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.calibration import Calibration
from models.frozen import Precision
from pipelines.compute import devices
from pipelines.images.views import Decoder, Views
from pipelines.pool import decoding, pixels
from pipelines.pool.features import FeatureReader, FeatureStore
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.run import model, scores, verdicts

Wanted = Literal["auto", "bf16", "fp32"]


class Computed(NamedTuple):
    """What the networks say of N images, on their device, which may still compute it; see `Scores`."""

    images: Tensor  # what the classifier has seen
    embeddings: Tensor
    prob_synthetic: Tensor | None
    label: Tensor | None  # (N,) int64
    confidence: Tensor | None
    probs: Tensor | None
    raw_confidence: Tensor | None


@dataclass(frozen=True)
class Scores:
    """Scores of N images. Without a detector `prob_synthetic` is None."""

    embeddings: npt.NDArray[np.float32]  # (N, D), see `model.Model.embed`
    prob_synthetic: npt.NDArray[np.float32] | None  # (N,), 0..1
    synthetic: npt.NDArray[np.bool_] | None  # (N,)
    verdict: npt.NDArray[np.str_] | None  # (N,), one of `verdicts.VERDICTS`
    pseudo_label: list[str] | None  # this and the rest: None without classes
    confidence: npt.NDArray[np.float32] | None  # (N,), calibrated probability of the pseudo-label
    probs: npt.NDArray[np.float32] | None  # (N, K), calibrated
    raw_confidence: npt.NDArray[np.float32] | None  # (N,), as the classifier gives it
    typicality: npt.NDArray[np.float32] | None  # (N,), see `pipelines.run.calibration`; None where nothing was measured


class Scorer:
    """A trained model with its thresholds.

    A classifier that was trained end to end reads images in `precision`. The detector computes in fp32, as its
    thresholds were measured, so that verdicts are the same; and so does what was trained on frozen features.
    """

    def __init__(
        self, trained: model.Model, device: torch.device, thresholds: verdicts.Thresholds, precision: Precision = "fp32"
    ) -> None:
        self.model, self.thresholds, self.device = trained, thresholds, device
        self.precision: Precision = "fp32" if trained.config.frozen else precision
        self._autocast = devices.autocast(self.precision, device)
        devices.keep_freed_memory(device)
        self._threads = ThreadPoolExecutor(max(2, torch.get_num_threads()))

    @classmethod
    def load(
        cls,
        run: Path,
        device: Literal["auto", "cuda", "cpu"] = "auto",
        precision: Wanted = "auto",
        thresholds: verdicts.Thresholds | None = None,
    ) -> "Scorer":
        """Load run/model/, and run/thresholds.json unless others are given; MissingArtifact before training ends."""
        chosen = devices.choose(device)
        trained = model.load(run, chosen)
        precise = choose_precision((run,), trained, precision, chosen)
        return cls(trained, chosen, thresholds or verdicts.load(run), precise)

    def score(self, data: Sequence[bytes], keys: Sequence[str] | None = None) -> Scores:
        """Score images given as file contents; CorruptShard names one that cannot be decoded."""
        names = keys or [f"number {i}" for i in range(len(data))]
        return self.score_views(self._views(self.model.decoder, data, names))

    @torch.no_grad()
    def prob_synthetic(self, data: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """What `score` says of the detector, (N,), without what only the classifier needs."""
        decoder: Decoder | FeatureReader = self.model.decoder
        if isinstance(decoder, FeatureReader):
            decoder = replace(decoder, gives_pixels=True)  # no features of augmented views
        views = self._views(decoder, data, [f"number {i}" for i in range(len(data))])
        return np.asarray(self.model.detector(views.tiles.to(self.device)).sigmoid().cpu().numpy())

    def _views(self, decoder: Decoder | FeatureReader, data: Sequence[bytes], keys: Sequence[str]) -> Views:
        views = decoder.batch(keys, data, self._threads)
        if self.model.outside.names:
            sha256 = [hashlib.sha256(content).hexdigest() for content in data]
            views = Views(views.images, self.model.outside.join(views.tiles, sha256))
        return views

    def score_shards(
        self, pool: Pool, numbers: Sequence[int], batch_size: int, on_images: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[int, list[Scores]]]:
        """Yield the number and the scores, in batches, of each of some shards; `on_images` hears of every batch.

        While the networks read a batch, the next ones are decoded, also those of the next shard. A batch never spans
        two shards. A panel takes the features that are kept beside the pool. A GPU gets each batch before the scores of
        the one before it are waited for.
        """
        reader, threads = self.model.reader, max(2, torch.get_num_threads())
        num_processes = decoding.num_processes(sum(pool.counts[number] for number in numbers), threads)
        with closing(pixels.Decoding(self.model.pixels, self.device, threads, num_processes)) as images_of:
            decoded = images_of.stream(_batches(pool, numbers, batch_size))
            for number in numbers:
                features = self._features(pool, number, reader) if reader is not None else None
                parts = list[Scores]()
                computed: Computed | None = None
                for start in range(0, pool.counts[number], batch_size):
                    if features is not None and self.model.config.frozen:
                        images = features.images[start : start + batch_size]
                    else:
                        views = next(decoded)
                        images = views.images
                    if features is not None:
                        views = Views(images, features.tiles[start : start + batch_size])
                    before, computed = computed, self._compute(views)
                    if before is not None:
                        parts.append(self._scores(before))
                    on_images(len(images))
                if computed is not None:
                    parts.append(self._scores(computed))
                yield number, parts

    def _features(self, pool: Pool, number: int, reader: FeatureReader) -> Views:
        views, columns = FeatureStore(pool, replace(reader, gives_pixels=False)).shard(number), self.model.outside
        sha256 = Rows.of_shard(pool, number).columns(["sha256"])["sha256"].to_pylist() if columns.names else []
        return Views(views.images, columns.join(views.tiles, sha256))

    def score_views(self, views: Views) -> Scores:
        """Score decoded images."""
        return self._scores(self._compute(views))

    @torch.no_grad()
    def _compute(self, views: Views) -> Computed:
        classifier, config = self.model.classifier, self.model.config
        views = views.map(lambda pixels: pixels.to(self.device))
        with self._autocast:
            embeddings = self.model.embed(views.images)
        label, confidence, probs, raw = None, None, None, None
        if config.classes:
            logits = classifier.real(embeddings).float()
            raw, label = logits.softmax(1).max(1)
            probs = Calibration(config.temperature, config.uniform).probs(logits)
            confidence = probs.gather(1, label[:, None]).squeeze(1)
        prob_synthetic = self.model.detector(views.tiles).sigmoid() if config.has_detector else None
        return Computed(views.images, embeddings, prob_synthetic, label, confidence, probs, raw)

    def _scores(self, computed: Computed) -> Scores:
        found = (None if values is None else values.cpu().numpy() for values in computed[2:])
        prob_synthetic, label, confidence, probs, raw = found
        classes, thresholds = self.model.config.classes, self.thresholds
        typicality = self.model.typicality(computed.embeddings, computed.images) if classes else None
        return Scores(
            embeddings=computed.embeddings.cpu().numpy(),
            prob_synthetic=prob_synthetic,
            synthetic=None if prob_synthetic is None else prob_synthetic >= thresholds.synthetic_from,
            verdict=None if prob_synthetic is None else thresholds.verdicts(prob_synthetic),
            pseudo_label=None if label is None else [classes[i] for i in label.tolist()],
            confidence=confidence,
            probs=probs,
            raw_confidence=raw,
            typicality=None if typicality is None else typicality.numpy(),
        )


def _batches(pool: Pool, numbers: Sequence[int], batch_size: int) -> Iterator[tuple[Rows, Tensor]]:
    for number in numbers:
        rows = Rows.of_shard(pool, number)
        for start in range(0, len(rows), batch_size):
            yield rows, torch.arange(start, min(start + batch_size, len(rows)))


def choose_precision(folders: Sequence[Path], trained: model.Model, wanted: Wanted, device: torch.device) -> Precision:
    """What `wanted` means for a run.

    `auto` is the precision of the scores that the first of `folders` with scores has, so that all images of a run are
    seen alike, also those from outside; without scores, bf16 where the device is faster in it.
    """
    stored = [scores.precision(folder, trained.digest) for folder in folders] if wanted == "auto" else []
    found = next((each for each in stored if each is not None), wanted)
    return devices.precision_of(found, device)
