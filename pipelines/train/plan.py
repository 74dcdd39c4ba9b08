"""Chooses what a training leaves open: backbone and detector by the sizes of the pool's images and by the device."""

from dataclasses import dataclass

import numpy as np
import torch

from models.frozen import Frozen
from pipelines.compute import devices
from pipelines.errors import BadInput
from pipelines.pool.features import FeatureReader
from pipelines.pool.manifest import Pool
from pipelines.run import weights
from pipelines.train.config import TrainConfig

SMALL = 64  # pixels, of the shorter side, up to which images are taken for small ones
FROM_SCRATCH = ("wrn-28-2", "small")  # backbones that start untrained; the first is that of small images
SAMPLED_SHARDS = 64  # whose images say how large those of the pool are


@dataclass(frozen=True)
class Plan:
    """A configuration that leaves nothing open, why it is so, and what reads features where a panel is the detector.

    Features of a frozen backbone are learned from on the CPU, also where a GPU reads the images: to the same numbers
    with and without a GPU, and a step is so small that a GPU would mostly wait for its kernels to be started.
    """

    config: TrainConfig
    sentence: str | None
    reader: FeatureReader | None
    device: torch.device  # of the training


def typical_size(pool: Pool) -> tuple[int, int]:
    """Median width and height of a pool's images, in pixels."""
    step = max(1, len(pool.shards) // SAMPLED_SHARDS)
    tables = [pool.rows(shard, ["width", "height"]) for shard in pool.shards[::step]]
    width, height = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("width", "height"))
    return (int(np.median(width)), int(np.median(height))) if len(width) else (0, 0)


def recipe_of(config: TrainConfig) -> str | None:
    """Name of the recipe that fits the pool and the device, for whoever names none; None: the defaults, for a GPU."""
    from_scratch = config.network.backbone in FROM_SCRATCH or config.network.detector == "network"
    if not from_scratch and min(typical_size(Pool.open(config.pool))) > SMALL:
        return "photographs"
    return "cpu" if devices.choose(config.machine.device).type == "cpu" else None


def make(config: TrainConfig, pool: Pool, device: torch.device) -> Plan:
    """Resolve what is `auto` or unset. Raises BadInput where the settings contradict each other."""
    network, sentence = config.network, None
    if network.init_from and not network.frozen and (network.weights or network.pretrained):
        raise BadInput("--init-from already gives the backbone its weights. Leave out --weights and --pretrained.")
    width, height = typical_size(pool)
    large = min(width, height) > SMALL
    reads = network.detector == "panel" or (network.detector == "auto" and (large or bool(network.frozen)))
    if network.backbone == "auto" and reads:
        choice = weights.choose_backbone(device.type, weights.hub_reachable())
        size = network.image_size or choice.image_size
        network = network.model_copy(update={"backbone": choice.backbone, "image_size": size, "pretrained": True})
        sentence = choice.reason
    elif network.backbone == "auto":
        network = network.model_copy(update={"backbone": FROM_SCRATCH[0]})
    is_timm = network.backbone.startswith("timm:")
    if network.pretrained is None:
        published = is_timm and (reads or (large and not network.init_from)) and not network.weights
        network = network.model_copy(update={"pretrained": published})
    can_read = is_timm and bool(network.pretrained or network.weights)
    detector = network.detector
    if detector == "auto":
        detector = "panel" if reads and can_read else "network"
    if detector == "panel" and not can_read:
        raise BadInput(
            f"--detector panel: {network.backbone} has no pretrained weights to read features with. Use --backbone "
            "auto, or timm:NAME with --pretrained or --weights."
        )
    frozen = network.frozen
    if frozen is None:
        frozen = detector == "panel"
    if frozen and detector != "panel":
        raise BadInput("--frozen: features of a frozen backbone are read for a panel alone. Use --detector panel.")
    resolved = config.model_copy(
        update={"network": network.model_copy(update={"detector": detector, "frozen": frozen})}
    )
    resolved = resolved.model_copy(
        update={"network": resolved.network.model_copy(update={"image_size": resolved.decoder.image_size})}
    )
    if detector == "network":
        return Plan(resolved, sentence, None, device)
    reader = _reader(resolved, device)
    learns_on = torch.device("cpu") if frozen else device
    how = "frozen" if frozen else "trained end to end"
    tiles = "one tile" if network.tiles == 1 else f"up to {network.tiles} tiles"
    facts = (
        f"Images are {width}x{height} (median): {how}, {reader.frozen.size} px, {tiles} at native resolution and at a "
        "common scale."
    )
    return Plan(
        resolved, f"{sentence} {facts}" if sentence else f"Backbone {network.backbone}. {facts}", reader, learns_on
    )


def _reader(config: TrainConfig, device: torch.device) -> FeatureReader:
    network = config.network
    tensors = weights.pretrained(network.backbone, network.weights)
    try:
        frozen = Frozen(
            network.backbone, tensors, network.image_size, devices.autocast(config.machine.precision, device)
        )
    except ValueError as error:
        where = f"--weights {network.weights}" if network.weights else f"--backbone {network.backbone}"
        raise BadInput(f"{where}: {error}. Choose another backbone, or other weights.") from None
    return FeatureReader(frozen.to(device), network.tiles, network.views if network.frozen else 0)
