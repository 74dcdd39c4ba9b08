"""Chooses device and precision, and joins the ranks that torchrun started."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from pipelines.errors import BadInput

if TYPE_CHECKING:
    from models.frozen import Precision


def choose(wanted: str) -> torch.device:
    """Choose the device for `auto`, `cpu` or `cuda`; auto is the GPU if there is one.

    Raises BadInput if `cuda` is asked for and there is no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: PyTorch sees no GPU here; use --device cpu, or check the driver.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32: on GPUs, and on CPUs with AMX or AVX512-BF16 instructions."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def precision_of(wanted: str, device: torch.device) -> "Precision":
    """What `auto`, `bf16` or `fp32` means on a device: auto is bf16 where it is faster."""
    if wanted == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return "bf16" if wanted == "bf16" else "fp32"


def autocast(wanted: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which networks compute in bf16, if that is what `wanted` means on `device`."""
    is_bf16 = precision_of(wanted, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext()


def keep_freed_memory(device: torch.device) -> None:
    """Make the C library keep freed memory, for work that allocates the same sizes again and again.

    glibc returns large blocks to the system at once, and gets them back as pages that the system must clear first: on a
    CPU a tenth of a training step, and nearly half of the time that a network takes to read images
    (docs/benchmarks.md). Peak memory does not grow. With other C libraries, or on a
    GPU, this does nothing.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(2**30))  # M_MMAP_THRESHOLD: blocks up to 1 GiB come from the heap
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: the heap does not shrink


def is_first() -> bool:
    """Whether this process is the one that writes files: the only process, or the first of torchrun's ranks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(wanted: str, batch_size: int) -> Iterator[torch.device]:
    """Join the ranks that torchrun started, if it did; yield this process's device.

    Raises BadInput if the ranks cannot share batches of `batch_size` equally.
    """
    device = choose(wanted)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield device
        return
    if batch_size % world:
        raise BadInput(f"batch_size = {batch_size} cannot be shared by {world} ranks; choose a multiple of {world}.")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
