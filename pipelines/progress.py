"""How a stage says where it is. The stage calls `on_tick`; who draws it is not its business."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """State of a stage: `done` of `total` (None: unknown) `unit`s, with a few figures worth showing."""

    done: int
    total: int | None
    unit: str
    figures: Mapping[str, float | str] = field(default_factory=dict)
    note: str = ""  # something to say once, such as an alarm


OnTick = Callable[[Tick], None]


def ignore(tick: Tick) -> None:
    """An `on_tick` that shows nothing."""
