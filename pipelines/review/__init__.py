"""Review: serves a local page on which a person browses a pool and marks images."""

from collections.abc import Callable

from pipelines.progress import OnTick, ignore
from pipelines.review.config import ReviewConfig, Summary

__all__ = ["ReviewConfig", "Summary", "run"]


def run(config: ReviewConfig, on_ready: Callable[[str], None], on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.review.server`."""
    from pipelines.review import server  # a configuration alone needs no heavy library

    return server.run(config, on_ready, on_tick)
