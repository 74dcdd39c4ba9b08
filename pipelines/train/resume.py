"""The checkpoint of a training: all state of its method and the figures since the last log line."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.methods import Method
from models.rsmatch import RSMatch
from pipelines.errors import Incompatible
from pipelines.run import checkpoint

_SUMS = "sums/"
_CONFIDENT = "confident_real"


def save(path: Path, method: Method, sums: dict[str, Tensor], step: int, identity: dict[str, Any]) -> None:
    """Write the state after `step` steps; `identity` is what a resume must agree with."""
    tensors = {f"{_SUMS}{name}": value for name, value in sums.items()}
    for name, part in method.parts.items():
        tensors |= checkpoint.pack(name, part)
    if isinstance(method, RSMatch):
        tensors[_CONFIDENT] = method.examples.confident_real
    checkpoint.save(path, tensors, {"step": step, "config": identity})


def load(path: Path, identity: dict[str, Any], method: Method, device: torch.device) -> tuple[int, dict[str, Tensor]]:
    """Load a checkpoint into `method` if there is one; returns the step to resume from and the running sums.

    Raises Incompatible where the checkpoint has another identity, or is of another version.
    """
    if not path.exists():
        return 0, {}
    tensors, state = checkpoint.load(path, device)
    before, now = _flat(state["config"]), _flat(identity)
    if differing := sorted(key for key in now.keys() | before.keys() if before.get(key) != now.get(key)):
        raise Incompatible(
            f"{path}: was trained with other {', '.join(differing)}. Repeat that configuration to resume, choose "
            "another --run, or start over with --no-resume."
        )
    try:
        for name, part in method.parts.items():
            checkpoint.unpack(name, tensors, part)
    except RuntimeError as error:  # torch's answer where names or shapes are not its own
        raise Incompatible(
            f"{path}: was written by another version of curate. Choose another --run, or start over with --no-resume."
        ) from error
    if isinstance(method, RSMatch):
        method.examples.confident_real = tensors[_CONFIDENT]
    sums = {key.removeprefix(_SUMS): value for key, value in tensors.items() if key.startswith(_SUMS)}
    return int(state["step"]), sums


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
