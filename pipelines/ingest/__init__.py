"""Ingest brings a crawl into the pool."""

from pipelines.ingest.config import IngestConfig, Summary
from pipelines.progress import OnTick, ignore

__all__ = ["IngestConfig", "Summary", "run"]


def run(config: IngestConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.ingest.stage`."""
    from pipelines.ingest import stage  # imported late, so that a configuration needs no heavy library

    return stage.run(config, on_tick)
