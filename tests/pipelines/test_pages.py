from pathlib import Path

import pytest
from jinja2 import UndefinedError

from pipelines import pages
from pipelines.errors import BadInput


def test_a_page_may_name_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    pages.write_page(tmp_path / "page.html", "caf\udce9.jpg")
    assert (tmp_path / "page.html").read_text() == "caf\\udce9.jpg"


def test_a_page_that_lacks_a_value_is_refused() -> None:
    with pytest.raises(UndefinedError, match="sheets"):
        pages.render("contact_sheet.html.j2", {})


def test_the_message_names_the_option_and_parents_are_made_only_on_request(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    with pytest.raises(BadInput, match=f"^--out {page}: cannot be written"):
        pages.write_page(page, "text", option="--out")
    pages.write_page(page, "text", option="--out", parents=True)
    assert page.read_text() == "text"
