"""What is seen of a training while it runs: metrics.jsonl, alarms, accuracy and, against a known truth, the AUROC."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.rsmatch import Recipe, RSMatch
from pipelines import batches, labeled, truth
from pipelines.atomic import replacing

EVALUATE_BATCH = 500
TRUTH_SAMPLE = 5_000  # images of the pool on which the AUROC is followed


class MetricsLog:
    """metrics.jsonl: one flat object per log step; lines after the checkpoint that we resume from are dropped."""

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
                break  # a line that a kill cut short: all that follows was after the checkpoint
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


def means(sums: dict[str, Tensor], count: int) -> dict[str, float]:
    """Means of figures that `count` steps summed up, as Python numbers: here the host waits for the device."""
    figures: dict[str, float] = {}
    for name, value in sums.items():
        if value.ndim:  # one number a class
            figures |= {f"{name}/{k}": round(share / count, 6) for k, share in enumerate(value.tolist())}
        else:
            figures[name] = round(value.item() / count, 6)
    return figures


class Watch:
    """Alarms that a person can act on, each raised once."""

    def __init__(self, recipe: Recipe, classes: tuple[str, ...]) -> None:
        self._recipe, self._classes = recipe, classes
        self.raised: dict[str, None] = {}

    def check(self, step: int, figures: dict[str, float]) -> Iterator[str]:
        """Yield what is new at a log step."""
        first = self._recipe.routing_start if self._recipe.method == "rsmatch" else self._recipe.warmup_steps
        if step <= first + self._recipe.num_steps // 10:
            return  # early figures mean little
        for alarm in self._alarms(figures):
            if alarm not in self.raised:
                self.raised[alarm] = None
                yield alarm

    def _alarms(self, figures: dict[str, float]) -> Iterator[str]:
        share = figures.get("dummy_share")
        if share is not None and share < 0.01:
            yield (
                "Under 1 % of the pool goes to the dummy head: the pool is clean, or the detector found nothing. "
                "Look at the most synthetic images with `curate inspect`; train with --method fixmatch if it is clean."
            )
        if share is not None and share > 0.99:
            yield (
                "Over 99 % of the pool goes to the dummy head: the labeled images differ from all of the pool, often "
                "in size or file format. Take labeled images that went through the same pipeline as the crawl."
            )
        for k, name in enumerate(self._classes):
            among = figures.get(f"pseudo_label_share/{k}")
            if among is None:
                return
            if among > 0.9:
                yield (
                    f"Pseudo-labels have collapsed to the class {name!r}: give more labeled images per class, or lower "
                    "learning_rate in --config."
                )
            if among < 0.02 / len(self._classes):
                yield (
                    f"The labeled class {name!r} is hardly found in the pool: "
                    "check its labeled images, or leave it out."
                )


class Evaluation:
    """Accuracy on the validation set and, where a truth is known, the detector's AUROC on the pool."""

    def __init__(
        self,
        images: batches.Images,
        rows: batches.Rows,
        validation: labeled.Labeled | None,
        known: truth.Truth | None,
        device: torch.device,
    ) -> None:
        self._images, self._validation, self._device = images, validation, device
        self._synthetic = torch.from_numpy(known.of(rows.members())[0]) if known else None

    @torch.no_grad()
    def __call__(self, learner: RSMatch, everything: bool = False) -> dict[str, float]:
        """Figures of the averaged networks; on a sample of the pool unless `everything`."""
        figures = {}
        if self._validation is not None:
            correct = 0
            pixels, labels = self._validation.views.images, self._validation.labels
            for image, label in zip(pixels.split(EVALUATE_BATCH), labels.split(EVALUATE_BATCH), strict=True):  # type: ignore[no-untyped-call]
                predicted = learner.classifier_ema(image.to(self._device)).real.argmax(1)
                correct += int((predicted == label.to(self._device)).sum())
            figures["accuracy"] = correct / len(labels)
        if self._synthetic is not None and learner.recipe.method == "rsmatch":
            every = 1 if everything else max(1, len(self._images) // TRUTH_SAMPLE)
            known = (self._synthetic != truth.UNKNOWN).nonzero().squeeze(1)[::every]
            stream = self._images.stream(torch.split(known, EVALUATE_BATCH))
            logits = torch.cat([learner.detector_ema(views.tiles) for views in stream])
            figures["detector_auroc"] = truth.auroc(logits.cpu().numpy(), self._synthetic[known].numpy() == 1)
        return {name: round(value, 6) for name, value in figures.items()}
