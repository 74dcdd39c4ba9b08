"""The README.md of run/model/, a model card: how to use the model, its data, thresholds, estimates and limits."""

import textwrap
from typing import TYPE_CHECKING

from pipelines.run import labels, verdicts
from pipelines.run.calibration import Evidence
from pipelines.run.quality import Quality

if TYPE_CHECKING:
    from pipelines.run.model import ModelConfig

CARD = """# A classifier and a real/synthetic detector, trained by curate

{classifier}
{detector}
## Data

{data}

`../run.json` holds all settings, and how many images there were.

## Thresholds

{thresholds}

## Estimates

{estimates}

## Limits

- Scores are estimates, learned from labeled real images, and from synthetic ones only where some were known: some
  verdicts are wrong. Look at images (`curate inspect`, `curate review`) before you delete any.
- The detector learned what part of this pool has and the labeled images have not. Images of another pool, of other
  generators, or resized or compressed in another way may be judged worse. A verdict of one picture is worth no more
  than the estimate.
- {of_labels}
"""

CLASSIFIER = """\
`classifier.pt2` loads with torch alone and takes uint8 RGB images (B, 3, {image_size}, {image_size}):

    import torch
    model = torch.export.load("classifier.pt2").module()
    logits = model(images)  # (B, {num_classes}), in the order of `classes` in config.json
    probs = (1 - {uniform}) * (logits / {temperature}).softmax(1) + {uniform} / {num_classes}  # calibrated

`classifier.safetensors` holds its weights (EMA of training, backbone `{backbone}`). `mean` and `std` in config.json
standardize its images, whose levels are first divided by 255; `classifier.pt2` does that itself.
"""

NO_CLASSIFIER = """\
The labeled images had no classes, so there is no classifier. `classifier.safetensors` holds the backbone `{backbone}`
as training began with it: {origin}.
"""

ORIGIN = {
    "backbone": "its features are the embeddings of images",
    "layout": "untrained and unused; the embeddings of images are thumbnails of 8x8 pixels",
}

NETWORK = """\
`detector.pt2` loads with torch alone and takes uint8 RGB crops (B, 3, {detector_size}, {detector_size}) at native
resolution. Never resize an image for it, as that destroys the traces it looks for:

    import torch
    detector = torch.export.load("detector.pt2").module()
    prob_synthetic = detector(crops)  # (B,), 0..1

`curate score` takes the same crop of a file each time. It continues smaller images by their mirror image:

    import zlib
    from pathlib import Path
    import numpy as np
    from PIL import Image, ImageOps
    data = Path("photo.jpg").read_bytes()
    pixels = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
    pixels = np.pad(pixels, [(0, max(0, {detector_size} - side)) for side in pixels.shape[:2]] + [(0, 0)], "symmetric")
    top = zlib.crc32(data) % (pixels.shape[0] - {detector_size} + 1)
    left = (zlib.crc32(data) >> 16) % (pixels.shape[1] - {detector_size} + 1)
    crop = pixels[top : top + {detector_size}, left : left + {detector_size}].transpose(2, 0, 1)
    crops = torch.tensor(crop)[None]

`detector.safetensors` holds its weights by parameter name (EMA of training).
"""

PANEL = """\
The detector is a panel of linear models. They read features of whole files, at native resolution and scaled, so it is
not a program for torch alone. Call it from Python, with the folder of the run, in which this one lies:

    import curate
    curate.Detector("run").score(["photo.jpg"]).to_pylist()  # prob_synthetic (0..1), verdict, ...

`detector.safetensors` holds its weights, `frozen.safetensors` those of the pretrained network (`{backbone}`) that
computes the features.
"""

NO_DETECTOR = """\
Method `{method}` trains no detector: `detector.safetensors` is untrained, and there are no verdicts.
"""

CLASSES_LISTED = 20


def text(config: "ModelConfig", evidence: Evidence | None, measured: Quality | None) -> str:
    """Write the card of a model that was trained with this configuration, in Markdown; `measured` is its detector."""
    values = {
        **vars(config),
        "num_classes": len(config.classes),
        "origin": ORIGIN[config.embedding],
    }
    detector = NO_DETECTOR if not config.has_detector else NETWORK if config.witnesses is None else PANEL
    return CARD.format(
        classifier=(CLASSIFIER if config.classes else NO_CLASSIFIER).format(**values),
        detector=detector.format(**values),
        data=_data(config),
        thresholds=_thresholds(config),
        estimates=_estimates(config, evidence, measured),
        of_labels=_wrapped(_limit_of_labels(config, evidence), indent="  "),
    )


def _wrapped(sentences: str, indent: str = "") -> str:
    return textwrap.fill(sentences, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _data(config: "ModelConfig") -> str:
    labeled = "The labeled images were real ones, without classes"
    if config.classes:
        listed = ", ".join(config.classes[:CLASSES_LISTED]) + (", ..." if len(config.classes) > CLASSES_LISTED else "")
        labeled = f"The labeled images were real ones of {len(config.classes)} classes ({listed})"
    pretrained = " The backbone began with pretrained weights." if config.is_pretrained or config.frozen else ""
    return _wrapped(
        f"The pool `{config.pool}`, whose images had no labels, and labeled images. {labeled}. Method "
        f"`{config.method}`, {config.num_steps} steps, backbone `{config.backbone}`.{pretrained}"
    )


def _thresholds(config: "ModelConfig") -> str:
    if not config.has_detector:
        return "None, as there is no detector."
    chosen = verdicts.choose(config.held_out, None, config.unsure_from)
    unsure = ", and unsure in between" if chosen.real_below < chosen.synthetic_from else ""
    return _wrapped(
        f"An image is synthetic where prob_synthetic is at least {chosen.synthetic_from:.4g}, and real where it is "
        f"below {chosen.real_below:.4g}{unsure}. {chosen.statement} `curate score --max-false-positive-rate` sets "
        "others; `../thresholds.json` has those of the latest scores."
    )


def _estimates(config: "ModelConfig", evidence: Evidence | None, measured: Quality | None) -> str:
    found = []
    if measured is not None:
        found.append(" ".join(measured.statements))
    elif config.has_detector:
        share = "How much of the pool is synthetic was not estimated."
        if config.estimated_share is not None and config.estimated_interval is not None:
            low, high = config.estimated_interval
            share = (
                f"Training estimated that {config.estimated_share:.1%} of the pool is synthetic ({low:.1%} to "
                f"{high:.1%} with 95 % confidence)."
            )
        found.append(f"{share} How well the detector separates it was not measured.")
    if evidence is not None:
        of_labels = labels.measure(evidence, config.classes)
        found.append(f"{of_labels.statements[0]} `../labels.json` has the classes one by one.")
    elif config.classes:
        found.append("How often the labels are right was not measured: too few labeled images of each class.")
    return "\n\n".join(_wrapped(each) for each in found) or "None."


def _limit_of_labels(config: "ModelConfig", evidence: Evidence | None) -> str:
    if not config.classes:
        return "It says nothing about what an image shows."
    calibrated = "holds" if evidence is not None else "is not calibrated, and would hold"
    return (
        f"The classifier gives every image one of its classes, also one that shows none of them. Its confidence "
        f"{calibrated} for real images of these classes, like the labeled ones."
    )
