"""Builds the networks of a training, and the method that trains them."""

import torch

from models import methods
from models.classifier import Classifier
from models.detector import Detector
from models.methods import Method
from models.panel import Panel
from models.probe import Probe
from models.routed import Prior
from pipelines.compute import devices
from pipelines.errors import BadInput
from pipelines.run import model
from pipelines.train.config import TrainConfig
from pipelines.train.data import Data

# Steps that repay cuDNN's search for the fastest convolutions, which takes from seconds (WRN-28-2) to 42 s and more
# (EfficientNet-Lite0, on an H100).
LONG = 20_000


def build(
    config: TrainConfig, data: Data, device: torch.device, prior: Prior | None = None
) -> tuple[Method, Detector | Panel]:
    """Build the networks and the method that trains them; with a `prior` its panel is the detector.

    Raises BadInput for a backbone that there is not, and for settings that contradict each other.
    """
    torch.manual_seed(config.seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = config.recipe.num_steps >= LONG
    if config.controls.detector_examples == "nnpu" and config.controls.share_real is None:
        raise BadInput('detector_examples = "nnpu" needs the share of the pool that is real. Set share_real.')
    classifier = probe(config, data) if config.network.frozen else _classifier(config, data)
    detector = Detector(
        equalize=config.recipe.equalize_spectrum,
        residual_planes=config.controls.residual_planes,
        residual_features=config.controls.residual_features,
    )
    for each in (classifier, detector):
        each.to(device).to(memory_format=torch.channels_last)
    marked = data.training.marked.to(device) if data.training.marked else None
    autocast = devices.autocast(config.machine.precision, device)
    method = methods.build(
        config.recipe,
        config.controls,
        classifier,
        detector if prior is None else prior,
        autocast,
        num_images=data.num_unlabeled,
        marked=marked,
    )
    if config.machine.compile != "off" and not config.network.frozen:
        for each in (classifier, detector):  # a GPU replays each pass as one graph; a CPU ignores the mode
            each.compile(mode="reduce-overhead" if config.machine.compile == "cuda-graphs" else "default")
    return method, detector if prior is None else prior.panel


def probe(config: TrainConfig, data: Data) -> Probe:
    """Build both heads on features that were computed before, of the labeled images here."""
    views = data.training.examples.views.images
    built = Probe(views.shape[2], max(1, len(data.classes)), config.network.views)
    built.adapter.fit(views.flatten(0, 1))
    if config.network.init_from:
        model.init_from(built, config.network.backbone, data.classes, config.network.init_from)
    return built


def _classifier(config: TrainConfig, data: Data) -> Classifier:
    network = config.network
    try:
        # One pseudo-class without classes.
        classifier = Classifier(network.backbone, max(1, len(data.classes)), config.decoder.image_size)
    except ValueError as error:
        raise BadInput(f"--backbone {network.backbone}: {error}. Use wrn-28-2, small or timm:NAME.") from None
    if network.init_from:
        model.init_from(classifier, network.backbone, data.classes, network.init_from)
    elif network.weights or network.pretrained:
        model.init_backbone(classifier, network.backbone, network.weights)
    return classifier
