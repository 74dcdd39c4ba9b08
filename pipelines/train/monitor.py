"""Metrics of a running training: metrics.jsonl, alarms, accuracy and, against a known truth, the detector's AUROC."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import csqueue
from models.methods import Method
from models.recipe import Recipe
from models.rsmatch import RSMatch
from pipelines.pool import labeled, pixels, truth
from pipelines.run import evaluation
from pipelines.storage.atomic import replacing, sync
from pipelines.train.data import Facts

EVALUATE_BATCH = 500
TRUTH_SAMPLE = 5_000  # images of the pool on which the AUROC is measured during training


class Stopwatch:
    """Adds up the seconds spent within it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._started


class MetricsLog:
    """metrics.jsonl: one flat object per log step. A resume drops the lines after its checkpoint."""

    def __init__(self, path: Path, keep_until: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last: dict[str, Any] = {}
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = []
        for line in lines:
            try:
                values = json.loads(line)
            except ValueError:
                break  # a kill cut this line short; everything after it is newer than the checkpoint
            if values["step"] <= keep_until:
                kept.append(line)
                self.last = values
        with replacing(path) as temporary:
            temporary.write_text("".join(kept))

    def write(self, values: dict[str, Any]) -> None:
        """Append one line."""
        self.last = values
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def sync(self) -> None:
        """Flush all lines to the disk."""
        sync(self._path)


def means(sums: dict[str, Tensor], count: int) -> dict[str, float]:
    """Means of figures that `count` steps have summed, as Python numbers. The host waits for the device here.

    Sorted by name, so that a line of the log has the same text when a checkpoint held part of the sums.
    """
    figures: dict[str, float] = {}
    for name, value in sorted(sums.items()):
        if value.ndim:  # one number a class
            figures |= {f"{name}/{k}": round(share / count, 6) for k, share in enumerate(value.tolist())}
        else:
            figures[name] = round(value.item() / count, 6)
    return figures


class Watch:
    """Alarms that a person can act on. Each is raised once."""

    def __init__(self, recipe: Recipe, routing_start: int, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._silent_until = routing_start + recipe.num_steps // 10  # early figures mean little
        self.raised: dict[str, None] = {}

    def check(self, step: int, figures: dict[str, float]) -> Iterator[str]:
        """Yield the alarms that are new at a log step."""
        if step <= self._silent_until:
            return
        for alarm in self._alarms(figures):
            if alarm not in self.raised:
                self.raised[alarm] = None
                yield alarm

    def _alarms(self, figures: dict[str, float]) -> Iterator[str]:
        share = figures.get("dummy_share")
        is_synthetic = "is routed to the dummy head" if self._classes else "looks synthetic to the detector"
        if share is not None and share < 0.01:
            yield (
                f"Under 1 % of the pool {is_synthetic}: the detector finds hardly any synthetic image. That does not "
                "show that there are none. Look at the most synthetic images with `curate inspect`"
                + (
                    "; if you know from elsewhere that the pool is clean, train with --method fixmatch."
                    if self._classes
                    else "."
                )
            )
        if share is not None and share > 0.99:
            yield (
                f"Over 99 % of the pool {is_synthetic}. The labeled images differ from the whole pool, "
                "often in size or file format. Use labeled images that went through the same pipeline as the crawl."
            )
        for k, name in enumerate(self._classes):
            among = figures.get(f"pseudo_label_share/{k}")
            if among is None:
                return
            if among > 0.9:
                yield (
                    f"Pseudo-labels have collapsed to the class {name!r}. Add labeled images to each class, or lower "
                    "learning_rate in --config."
                )
            if among < 0.02 / len(self._classes):
                yield (
                    f"The pool holds hardly any image of the labeled class {name!r}. Check its labeled images, or "
                    "leave the class out."
                )


class Evaluation:
    """Accuracy on the validation set and, where a truth is known, the quality of detector, queue and pseudo-labels."""

    def __init__(
        self,
        images: pixels.Images,
        facts: Facts | None,
        validation: labeled.Labeled | None,
        device: torch.device,
    ) -> None:
        """Take the truth of the pool's rows, (N,) of being synthetic and (N,) of the class (see `truth.Truth.of`)."""
        self._images, self._validation, self._device, self._facts = images, validation, device, facts

    @torch.no_grad()
    def __call__(self, method: Method, everything: bool = False) -> dict[str, float]:
        """Figures of the averaged networks; on a sample of the pool unless `everything`."""
        figures: dict[str, float] = {}
        if self._validation is not None:
            figures |= self._accuracy(self._validation, method)
        if self._facts is not None:
            figures |= self._against_truth(self._facts, method, everything)
        return {name: round(value, 6) for name, value in figures.items() if not math.isnan(value)}

    def _accuracy(self, validation: labeled.Labeled, method: Method) -> dict[str, float]:
        correct = torch.zeros(2)
        images, labels = validation.views.images, validation.labels
        for start in range(0, len(labels), EVALUATE_BATCH):
            heads = method.classifier.average(images[start : start + EVALUATE_BATCH].to(self._device))
            predicted = torch.stack([head.argmax(1) for head in heads]).cpu()
            correct += (predicted == labels[start : start + EVALUATE_BATCH]).sum(1)
        real, dummy = (correct / len(labels)).tolist()
        return {"accuracy": real, "accuracy_dummy": dummy} if isinstance(method, RSMatch) else {"accuracy": real}

    def _against_truth(self, facts: Facts, method: Method, everything: bool) -> dict[str, float]:
        synthetic, label = facts
        has_classes = method.classifier.network.real.out_features > 1
        every = 1 if everything else max(1, len(self._images) // TRUTH_SAMPLE)
        known = np.flatnonzero(synthetic != truth.UNKNOWN)[::every]
        predicted, logits, color = [], [], []
        detecting = method if isinstance(method, RSMatch) and method.has_detector else None
        for views in self._images.stream(torch.split(torch.from_numpy(known), EVALUATE_BATCH)):
            if has_classes:
                predicted.append(method.classifier.average(views.images).real.argmax(1))
            if detecting:
                logits.append(detecting.detector.average(views.tiles))
            color.append(_is_color(views.images))
        fake, figures = synthetic[known] == 1, dict[str, float]()
        if has_classes:
            right, labeled = torch.cat(predicted).cpu().numpy() == label[known], label[known] != truth.UNKNOWN
            figures["pseudo_label_accuracy_real"] = evaluation.mean(right[labeled & ~fake])
            figures["pseudo_label_accuracy_synthetic"] = evaluation.mean(right[labeled & fake])
        if not detecting:
            return figures
        score, colored = torch.cat(logits).cpu().numpy(), torch.cat(color).cpu().numpy()
        figures |= {
            "detector_auroc": evaluation.auroc(score, fake),
            "detector_auroc_color": evaluation.auroc(score[colored], fake[colored]),
            "detector_flagged": evaluation.mean(score >= detecting.thresholds.detector.item()),
            "detector_accuracy": evaluation.mean((score >= detecting.thresholds.detector.item()) == fake),
        }
        if detecting.controls.has_queue:
            queue = detecting.examples.queue.index
            queued = queue[queue != csqueue.EMPTY].cpu().numpy()
            figures["queue_purity"] = evaluation.mean(synthetic[queued] == 1)
        return figures


def _is_color(images: Tensor) -> Tensor:
    """Whether each image (B,) has colors; of features nothing is known, and all count."""
    if images.dtype == torch.uint8:
        return evaluation.is_color(images)
    return torch.ones(len(images), dtype=torch.bool, device=images.device)
