"""Benchmark: compare methods on contaminated pools whose truth is known."""

from pipelines.benchmark.config import BenchmarkConfig, Summary
from pipelines.progress import OnTick, ignore

__all__ = ["BenchmarkConfig", "Summary", "run"]


def run(config: BenchmarkConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.benchmark.stage`."""
    from pipelines.benchmark import stage  # not before it is asked for: a configuration needs no heavy library

    return stage.run(config, on_tick)
