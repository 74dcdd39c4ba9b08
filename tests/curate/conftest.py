"""A working directory as it is after `curate score`, for the commands that come then."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models.classifier import Classifier
from models.detector import Detector
from pipelines import score, toy
from pipelines.run import model


@pytest.fixture(scope="session")
def scored(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds pool/ and run/; the networks are as they were born, for training would take minutes."""
    home = tmp_path_factory.mktemp("scored")
    shutil.copytree(world.pool, home / "pool")
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=toy.CLASSES, method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=0,
        pool="pool",
    )  # fmt: skip
    model.save(home / "run" / "model", config, Classifier("small", len(toy.CLASSES)).eval(), Detector().eval())
    score.run(score.ScoreConfig(pool=home / "pool", run=home / "run", device="cpu", batch_size=256))
    return home
