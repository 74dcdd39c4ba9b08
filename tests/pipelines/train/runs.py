"""Short trainings on the toy world, and what they leave."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.benchmark.methods import merged
from pipelines.progress import OnTick, Tick
from pipelines.train import TrainConfig
from tests.conftest import World

SMALL: dict[str, Any] = {
    "network": {"backbone": "small"},
    "recipe": {"num_steps": 24, "batch_size": 8, "unlabeled_ratio": 2, "warmup": 0.25},
    "machine": {"log_every": 4, "checkpoint_every": 6, "evaluate_every": 12, "device": "cpu"},
}


def config(world: World, run: Path, *changes: Mapping[str, Any], **more: Any) -> TrainConfig:
    """A short training of a small network; nested changes override single settings."""
    own = {"labeled": world.seed, "pool": world.pool, "run": run}
    return TrainConfig(**merged(SMALL, own, *changes, more))


def metrics(run: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> list[bytes]:
    """What both networks are, to the bit."""
    return [(run / "model" / f"{name}.safetensors").read_bytes() for name in ("classifier", "detector")]


def interrupt_at(step: int) -> OnTick:
    """Presses Ctrl-C after a step."""

    def interrupt(tick: Tick) -> None:
        if tick.unit == "steps" and tick.done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return interrupt
