"""Report: one offline HTML page of what is in a pool."""

from pipelines.progress import OnTick, ignore
from pipelines.report.config import ReportConfig, Summary

__all__ = ["ReportConfig", "Summary", "run"]


def run(config: ReportConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.report.stage`."""
    from pipelines.report import stage  # not before it is asked for: a configuration needs no heavy library

    return stage.run(config, on_tick)
