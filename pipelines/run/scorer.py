"""A trained model that scores images given as bytes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pipelines.compute import devices
from pipelines.images.views import Views
from pipelines.run import model, verdicts


@dataclass(frozen=True)
class Scores:
    """Scores of N images. Without a detector `prob_synthetic` is None."""

    embeddings: npt.NDArray[np.float32]  # (N, D), see `model.Model.embed`
    prob_synthetic: npt.NDArray[np.float32] | None  # (N,), 0..1
    synthetic: npt.NDArray[np.bool_] | None  # (N,)
    verdict: npt.NDArray[np.str_] | None  # (N,), one of `verdicts.VERDICTS`
    pseudo_label: list[str] | None  # this and the next two: None without classes
    confidence: npt.NDArray[np.float32] | None  # (N,), probability of the pseudo-label
    probs: npt.NDArray[np.float32] | None  # (N, K)


class Scorer:
    """A trained model with its thresholds."""

    def __init__(self, trained: model.Model, device: torch.device, thresholds: verdicts.Thresholds) -> None:
        self.model, self.thresholds, self.device = trained, thresholds, device
        self._threads = ThreadPoolExecutor(max(2, torch.get_num_threads()))

    @classmethod
    def load(cls, run: Path, device: Literal["auto", "cuda", "cpu"] = "auto") -> "Scorer":
        """Load run/model/ and run/thresholds.json; MissingArtifact before the end of training."""
        chosen = devices.choose(device)
        trained = model.load(run, chosen)
        return cls(trained, chosen, verdicts.load(run))

    def score(self, data: Sequence[bytes], keys: Sequence[str] | None = None) -> Scores:
        """Score images given as file contents; CorruptShard names one that cannot be decoded."""
        names = keys or [f"number {i}" for i in range(len(data))]
        return self.score_views(self.model.decoder.batch(names, data, self._threads))

    @torch.no_grad()
    def score_views(self, views: Views) -> Scores:
        """Score decoded images."""
        classifier, config = self.model.classifier, self.model.config
        views = views.map(lambda pixels: pixels.to(self.device))
        embeddings, probs = self.model.embed(views.images), None
        if config.classes:
            probs = classifier.real(embeddings).softmax(1)
            confidence, label = probs.max(1)
        prob_synthetic = self.model.detector(views.tiles).sigmoid().cpu().numpy() if config.has_detector else None
        return Scores(
            embeddings=embeddings.cpu().numpy(),
            prob_synthetic=prob_synthetic,
            synthetic=None if prob_synthetic is None else prob_synthetic >= self.thresholds.synthetic_from,
            verdict=None if prob_synthetic is None else self.thresholds.verdicts(prob_synthetic),
            pseudo_label=None if probs is None else [config.classes[i] for i in label.tolist()],
            confidence=None if probs is None else confidence.cpu().numpy(),
            probs=None if probs is None else probs.cpu().numpy(),
        )
