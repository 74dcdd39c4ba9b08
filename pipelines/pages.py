"""HTML pages: one template environment, in which everything that a page is given is text."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.errors import BadInput
from pipelines.storage.atomic import replacing


def render(template: str, **values: Any) -> str:
    """Render a template of ours; what it is given is text, never markup."""
    environment = Environment(
        loader=PackageLoader("pipelines"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(values)


def write_page(path: Path, page: str) -> None:
    """Write an HTML page whole; BadInput where it cannot be written."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # file names are any bytes
    except OSError as error:
        raise BadInput(f"--html {path}: cannot be written ({error.strerror}).") from None
