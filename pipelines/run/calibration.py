"""What a training learned about its own labels, in run/model/calibration.safetensors.

Training judges labeled images by classifiers that have not seen them (`pipelines.train.crossfit`). Scoring calibrates
the confidence by that, and says how many labels of the pool are right (`pipelines.run.labels`).
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import safetensors
import torch
from torch import Tensor

from models import calibration
from models.calibration import Calibration
from pipelines.errors import CorruptShard
from pipelines.run.checkpoint import write_tensors

FILE = "calibration.safetensors"


@dataclass(frozen=True)
class Evidence:
    """Labeled images by classifiers that have not seen them: L images, K classes, R references of D features."""

    logits: Tensor  # (L, K) float32
    labels: Tensor  # (L,) int64
    sha256: tuple[str, ...]  # of the files
    references: Tensor  # (R, D) embeddings of labeled images
    distances: Tensor  # (L,) of the images to the references, see `calibration.nearest`
    method: Literal["cross-fitted", "held-out"]

    @cached_property
    def calibration(self) -> Calibration:
        """Calibration of the classifier, by all of the images."""
        return calibration.fit(self.logits, self.labels)

    @property
    def right(self) -> Tensor:
        """Which images (L,) get their own label."""
        return self.logits.argmax(1) == self.labels

    @cached_property
    def probs(self) -> Tensor:
        """Calibrated probabilities (L, K), each by a calibration that has not seen the image."""
        return calibration.cross_calibrated(self.logits, self.labels)

    def typicality(self, embeddings_ND: Tensor) -> Tensor:
        """Conformal p-values (N,) float32: the share of labeled images that are as far from the others, or farther.

        Images of the classes have uniform ones; those of images that resemble no labeled one are near 0.
        """
        return self._values(calibration.nearest(embeddings_ND.cpu(), self.references))

    @property
    def typicality_of_own(self) -> Tensor:
        """The same (L,) of the labeled images."""
        return self._values(self.distances)

    def _values(self, distances_N: Tensor) -> Tensor:
        ordered_L = self.distances.sort().values
        as_far_N = len(ordered_L) - torch.searchsorted(ordered_L, distances_N)
        return (as_far_N + 1).float() / (len(ordered_L) + 1)


def save(folder: Path, evidence: Evidence | None) -> None:
    """Write it into run/model/, or remove what an earlier training left."""
    if evidence is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    tensors = {name: getattr(evidence, name).contiguous() for name in ("logits", "labels", "references", "distances")}
    about = {"sha256": json.dumps(evidence.sha256), "method": evidence.method}
    write_tensors(folder / FILE, tensors, about)


def load(run: Path) -> Evidence | None:
    """Read what training wrote; None where nothing could be measured, CorruptShard if it is damaged."""
    path = run / "model" / FILE
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata()
            names = ("logits", "labels", "references", "distances")
            tensors = {name: file.get_tensor(name) for name in names}
        method: Literal["cross-fitted", "held-out"] = "held-out" if about["method"] == "held-out" else "cross-fitted"
        return Evidence(**tensors, sha256=tuple(json.loads(about["sha256"])), method=method)
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError):
        raise CorruptShard(f"{path} is damaged. Train again.") from None
