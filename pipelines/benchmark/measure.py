"""Measure the detector of a finished run: on images outside the pool, and on photographs scaled in known ways."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipelines.benchmark import sources
from pipelines.compute import devices
from pipelines.images import encode
from pipelines.images.views import Decoder
from pipelines.pool.manifest import read_parquet
from pipelines.run import evaluation, model, verdicts

LIMITS = (0.05, 0.1)  # largest shares of real images lost, as in `curate score --max-false-positive-rate`
KERNELS = ("lanczos", "bicubic", "box", "bilinear")
LOST = 0.05  # share of the real test images above the threshold for scaled photographs
NUM_PHOTOGRAPHS = 1000
BATCH = 500  # images at once


@torch.no_grad()
def held_out(mixture: Path, run: Path) -> dict[str, Any]:
    """Evaluate the detector on real test images and on synthetic images that are in no pool.

    Returns AUROC, over all images, over color images and by class; accuracy; shares of real images called synthetic.
    Empty if the pool holds all synthetic images there are.
    """
    fake = read_parquet(mixture / "held_out.parquet")
    if not fake.num_rows:
        return {}
    trained = model.load(run, devices.choose("auto"))
    names = [path.name for path in sorted((mixture / "test").iterdir())]
    files = [(path, k) for k, name in enumerate(names) for path in sorted((mixture / "test" / name).iterdir())]
    data = [path.read_bytes() for path, _ in files] + fake["image"].to_pylist()
    label = np.array([k for _, k in files] + fake["cls"].to_pylist())
    synthetic = np.arange(len(data)) >= len(files)
    logits, color = _detect(trained, data)
    probs = torch.from_numpy(logits).sigmoid().numpy()
    return {
        "held_out_auroc": round(evaluation.auroc(logits, synthetic), 6),
        "held_out_auroc_color": round(evaluation.auroc(logits[color], synthetic[color]), 6),
        "held_out_accuracy": round(evaluation.mean((logits >= 0) == synthetic), 6),
        "held_out_false_positives": round(evaluation.mean(logits[~synthetic] >= 0), 6),
        # Share of real images lost if `curate score --max-false-positive-rate` is given this limit.
        "false_positives_at_limit": {
            f"{rate:g}": round(evaluation.mean(probs[~synthetic] >= verdicts.limit(trained.config.held_out, rate)), 6)
            for rate in LIMITS
            if (len(trained.config.held_out) + 1) * rate >= 1
        },
        "held_out_auroc_by_class": {
            name: round(evaluation.auroc(logits[label == k], synthetic[label == k]), 6) for k, name in enumerate(names)
        },
    }


@torch.no_grad()
def scaled_photographs(mixture: Path, run: Path, photographs: Path, size: int | None) -> dict[str, float]:
    """Share of photographs called synthetic after scaling by each kernel, at a threshold that loses 5 % of test images.

    Photographs are scaled to the size of the pool's images. The share is high if the detector takes the way of scaling
    for a trace of a generator.
    """
    trained = model.load(run, devices.choose("auto"))
    side, source = size or trained.config.detector_size, sources.read(photographs)
    photos = [source.images[i] for i in range(min(len(source), NUM_PHOTOGRAPHS))]
    files = sorted((mixture / "test").glob("*/*"))
    test_logits, _ = _detect(trained, [path.read_bytes() for path in files])
    threshold = np.quantile(test_logits, 1 - LOST)
    return {
        kernel: round(
            evaluation.mean(_detect(trained, [scaled(data, side, kernel) for data in photos])[0] >= threshold), 4
        )
        for kernel in KERNELS
    }


def scaled(data: bytes, side: int, kernel: str) -> bytes:
    """Scale an image to `side` x `side` pixels by one of KERNELS and save it as JPEG, as small images often are."""
    with Image.open(io.BytesIO(data)) as opened:
        small = opened.convert("RGB").resize((side, side), getattr(Image.Resampling, kernel.upper()))
    return encode.encode(small, "jpg")


def _detect(trained: model.Model, data: Sequence[bytes]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Compute the detector's logits (N,) and whether each image has color (N,)."""
    size, device = trained.config.detector_size, next(trained.detector.parameters()).device
    decoder = Decoder(size, size)
    logits, color = [], []
    for start in range(0, len(data), BATCH):
        part = data[start : start + BATCH]
        tiles = np.stack([decoder.decode_tile(f"number {start + i}", image) for i, image in enumerate(part)])
        on_device = torch.from_numpy(tiles).to(device)
        logits.append(trained.detector(on_device).cpu())
        color.append(evaluation.is_color(on_device).cpu())
    return torch.cat(logits).numpy(), torch.cat(color).numpy()
