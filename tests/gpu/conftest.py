"""Tests of what a GPU computes: `pytest -m gpu`. With CURATE_GPU_TESTS_ON=cpu they try themselves out on a CPU."""

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU, or the CPU that stands in for it; autouse, so that it skips before other fixtures take their time."""
    name = os.environ.get("CURATE_GPU_TESTS_ON", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(name)
