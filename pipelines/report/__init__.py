"""Report: writes one offline HTML page about a pool, its scores and what they may rest on."""

from pipelines.progress import OnTick, ignore
from pipelines.report.config import ReportConfig, Summary

__all__ = ["ReportConfig", "Summary", "run"]


def run(config: ReportConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.report.stage`."""
    from pipelines.report import stage  # a configuration alone needs no heavy library

    return stage.run(config, on_tick)
