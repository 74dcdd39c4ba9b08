"""Generate: synthetic images of named classes, for benchmarks."""

from pipelines.generate.config import GenerateConfig, Summary
from pipelines.progress import OnTick, ignore

__all__ = ["GenerateConfig", "Summary", "run"]


def run(config: GenerateConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.generate.stage`."""
    from pipelines.generate import stage  # not before it is asked for: a configuration needs no heavy library

    return stage.run(config, on_tick)
