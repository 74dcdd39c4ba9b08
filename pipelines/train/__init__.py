"""Train RSMatch, or a method it is compared with, on a pool and a small labeled set."""

from pipelines.progress import OnTick, ignore
from pipelines.train.config import Summary, TrainConfig

__all__ = ["Summary", "TrainConfig", "run"]


def run(config: TrainConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.train.stage`."""
    from pipelines.train import stage  # not before it is asked for: a configuration needs no heavy library

    return stage.run(config, on_tick)
