"""Export: filtered WebDataset shards for downstream training."""

from pipelines.export.config import ExportConfig, Summary
from pipelines.progress import OnTick, ignore

__all__ = ["ExportConfig", "Summary", "run"]


def run(config: ExportConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.export.stage`."""
    from pipelines.export import stage  # not before it is asked for: a configuration needs no heavy library

    return stage.run(config, on_tick)
