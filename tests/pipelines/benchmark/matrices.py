"""Small matrices on the toy world."""

import json
from pathlib import Path
from typing import Any

from pipelines.benchmark import BenchmarkConfig
from tests.conftest import World

CLASSES = ("cross", "disc", "square", "stripes", "triangle")
TRAIN: dict[str, Any] = {
    "network": {"backbone": "small"},
    "recipe": {"num_steps": 8, "batch_size": 8, "unlabeled_ratio": 2, "warmup": 0.25},
    "machine": {"evaluate_every": 4, "log_every": 4, "checkpoint_every": 4, "device": "cpu"},
}

CELL = {
    "contamination": "balanced", "num_real": 200, "alpha": 0.5, "labels": 250, "learning_rate": 0.01, "seconds": 1.0,
}  # fmt: skip


def config(world: World, sources: Path, out: Path, **changes: Any) -> BenchmarkConfig:
    settings: dict[str, Any] = {
        "real": sources / "real", "synthetic": sources / "synthetic", "test": world.test, "out": out,
        "methods": ("fixmatch", "rsmatch"), "labels": (20,), "seeds": 1, "num_real": (200,), "num_test": 50,
        "train": TRAIN,
    }  # fmt: skip
    return BenchmarkConfig(**(settings | changes))


def lines(out: Path) -> list[dict[str, Any]]:
    """Records without what a clock decides."""
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "steps_per_second")} for record in records]
