"""Inspect: looks into a scored pool, at single images, at contradicted verdicts and at near-duplicates."""

from typing import TYPE_CHECKING

from pipelines.inspect.config import DisagreementConfig, DuplicatesConfig, InspectConfig
from pipelines.progress import OnTick, ignore

if TYPE_CHECKING:
    from pipelines.inspect.lookup import Summary

__all__ = ["DisagreementConfig", "DuplicatesConfig", "InspectConfig", "run"]


def run(config: InspectConfig, on_tick: OnTick = ignore) -> "Summary":
    """Look images up; see `pipelines.inspect.lookup`."""
    from pipelines.inspect import lookup  # a configuration alone needs no heavy library

    return lookup.run(config, on_tick)
