"""Score: run a trained model over a pool."""

from pipelines.progress import OnTick, ignore
from pipelines.score.config import ScoreConfig, Summary

__all__ = ["ScoreConfig", "Summary", "run"]


def run(config: ScoreConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.score.stage`."""
    from pipelines.score import stage  # not before it is asked for: a configuration needs no heavy library

    return stage.run(config, on_tick)
