"""Progress reports of a stage: the stage calls `on_tick`, and whoever passed it decides how to show them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """State of a stage: `done` of `total` (None: unknown) `unit`s, with a few figures worth showing."""

    done: int
    total: int | None
    unit: str
    figures: Mapping[str, float | str] = field(default_factory=dict)
    note: str = ""  # a warning to show once, such as an alarm
    info: str = ""  # a message to show once that is no warning


OnTick = Callable[[Tick], None]


def ignore(tick: Tick) -> None:
    """Show nothing: the default `on_tick`."""
