"""Reports on a pool that would do harm: its names, and the configurations of its stages."""

from pathlib import Path
from typing import Any

from models.recipe import Recipe
from pipelines import train
from pipelines.report import ReportConfig

EVIL = "<img src=x onerror=alert(1)>"
EVIL_CLASS = '"><svg onload=alert(2)>'
CLASSES = (EVIL_CLASS, "disc", "square", "stripes", "triangle")


def configured(home: Path) -> train.TrainConfig:
    return train.TrainConfig(labeled=home / "seed", pool=home / "pool", run=home / "run", recipe=Recipe(num_steps=40))


def settings(home: Path, **others: Any) -> ReportConfig:
    return ReportConfig(**{"pool": home / "pool", "run": home / "run", "map": "pca", "device": "cpu", **others})
