"""The trained networks as exported programs, which load with torch alone.

classifier.pt2   real head: uint8 (B, 3, S, S) to logits (B, K), float32. Without classes there is none
detector.pt2     detector: uint8 (B, 3, T, T) to prob_synthetic (B,), float32, 0..1. Neither a panel, which reads whole
                 files (`pipelines.pool.features`), nor an untrained detector is a program
"""

import copy
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.classifier import TwoHeaded
from models.frozen import Frozen
from models.probe import Probe
from pipelines.storage.atomic import replacing

CLASSIFIER, DETECTOR = "classifier.pt2", "detector.pt2"


class RealHead(nn.Module):
    """The real head on images (B, 3, S, S) uint8, whose features a probe gets from the frozen network."""

    def __init__(self, classifier: TwoHeaded, frozen: Frozen | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.reader: nn.Module | None = None
        if isinstance(classifier, Probe) and frozen is not None:
            self.reader = nn.Sequential(frozen.standardize, frozen.network)

    def forward(self, images: Tensor) -> Tensor:
        seen = images if self.reader is None else self.reader(images)[:, None]
        logits: Tensor = self.classifier(seen).real
        return logits


class ProbSynthetic(nn.Module):
    """The detector's probability (B,) of crops (B, 3, T, T) uint8."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.detector(images)
        return logits.sigmoid()


def save(folder: Path, programs: Mapping[str, tuple[nn.Module, int]]) -> None:
    """Write programs, given by file name as a module and the pixels of its images; remove those of earlier trainings.

    They compute on the CPU: an archive of GPU tensors would load on machines with a GPU only.
    """
    for name in (CLASSIFIER, DETECTOR):
        if name not in programs:
            (folder / name).unlink(missing_ok=True)
            continue
        module, size = programs[name]
        content = _export(copy.deepcopy(module).cpu(), size)
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def _export(module: nn.Module, size: int) -> bytes:
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():  # the exporter warns about its own internals
        warnings.simplefilter("ignore")
        logging.getLogger("torch.export").setLevel(logging.ERROR)
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
        archive = io.BytesIO()
        torch.export.save(program, archive)
    return archive.getvalue()
