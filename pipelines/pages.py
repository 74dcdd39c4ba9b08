"""The one jinja environment of all HTML pages, and how a page is written to the disk.

Templates are in pipelines/templates. Whatever a page is given is text and gets escaped, unless it is `Markup` of ours.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.errors import BadInput
from pipelines.storage.atomic import replacing

TEXT = 160  # characters of a file's name or a caption; a page cuts longer ones


def render(template: str, values: Mapping[str, object]) -> str:
    """Render one of our templates; text in `values` is escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipelines"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": _number, "percent": _percent, "short": _shortened}
    return environment


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}" if value < 0.9995 or value > 1 else "100%"


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"


def write_page(path: Path, page: str, *, option: str = "--html", parents: bool = False) -> None:
    """Write an HTML page whole or not at all, and its parent folders if `parents` is set.

    Raises BadInput if it cannot be written; the message names `option`, which the user gave the path with.
    """
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # file names can be any bytes
    except OSError as error:
        raise BadInput(f"{option} {path}: cannot be written ({error.strerror}). Choose another file.") from None
