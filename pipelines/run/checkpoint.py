"""Checkpoints: one safetensors file with every tensor that a resume needs, and JSON in its header; no pickles.

Batches, augmentation and rates are pure functions of (seed, step), so a checkpoint holds no random or sampler state.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.errors import CorruptShard
from pipelines.storage.atomic import make_folder, replacing

_ERRNO = re.compile(r"\(os error (\d+)\)")  # in safetensors' text of an I/O error


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON state to `path`, atomically."""
    make_folder(path.parent)
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_tensors(path, own, {"state": json.dumps(state)})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors on the CPU as safetensors, atomically; OSError where the disk refuses."""
    for left in path.parent.glob(".tmp*"):  # temporary files of the library that a kill has left
        left.unlink()
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:
            if found := _ERRNO.search(str(error)):  # the library hides errors of the disk behind its own
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
            raise


def load(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote; CorruptShard where it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 (not a mapping)
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CorruptShard(
            f"{path} is not a readable checkpoint ({error}). Remove it to train from the start."
        ) from None


def pack(name: str, part: nn.Module | torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name a module's or an optimizer's tensors: NAME/KEY, for optimizers NAME/PARAMETER/KEY."""
    if isinstance(part, nn.Module):
        return {f"{name}/{key}": tensor for key, tensor in part.state_dict().items()}
    return {
        f"{name}/{parameter}/{key}": torch.as_tensor(value)
        for parameter, values in part.state_dict()["state"].items()
        for key, value in values.items()
        if value is not None
    }


def unpack(name: str, tensors: Mapping[str, Tensor], part: nn.Module | torch.optim.Optimizer) -> None:
    """Load the tensors that `pack` named into a module or an optimizer; none may be missing."""
    own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
    if isinstance(part, nn.Module):
        part.load_state_dict(own)
        return
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in own.items():
        number, field = key.split("/")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            # Fused optimizers go through memory in order: a buffer needs its parameter's layout (channels last).
            tensor = torch.empty_like(like).copy_(tensor)
        state.setdefault(int(number), {})[field] = tensor
    part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
