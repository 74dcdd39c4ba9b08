"""Paths and URLs name what people mean by them."""

from pathlib import Path

import pytest

from pipelines.storage.locations import driver_hint, locate, without_file_scheme


def test_a_file_url_may_be_percent_encoded(tmp_path: Path) -> None:
    plain, literal = tmp_path / "my photos é", tmp_path / "50%25"
    assert without_file_scheme(plain.as_uri()) == without_file_scheme(f"file://{plain}") == str(plain)
    assert locate(plain.as_uri()) == plain
    literal.mkdir()
    assert without_file_scheme(literal.as_uri()) == without_file_scheme(f"file://{literal}") == str(literal)
    assert without_file_scheme("https://host/a%20b.tar?x=%20") == "https://host/a%20b.tar?x=%20"


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/x", "s3"), ("https://h/x", "http"), ("HTTP://h/x", "http"), ("gs://b/x", None)]
)
def test_a_missing_driver_is_named_by_its_extra(url: str, extra: str | None) -> None:
    hint = f"; pip install 'curate-images[{extra}]'" if extra else ""
    assert driver_hint(ImportError("no driver"), url) == hint
    assert driver_hint(OSError("no network"), url) == ""
