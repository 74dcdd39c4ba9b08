"""`curate inspect` as a person types it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.pool.manifest import Pool
from tests.warm import curate

pytestmark = pytest.mark.slow


@pytest.fixture
def key(scored: Path) -> str:
    return str(Pool.open(scored / "pool").rows("00000")["key"][0])


def test_a_key_is_shown_with_its_neighbors_and_what_to_do_next(scored: Path, key: str) -> None:
    done = curate("inspect", key, "-k", "4", cwd=scored)
    assert done.returncode == 0, done.stderr
    assert f"Nearest neighbors of {key}" in done.stdout
    assert "of 4 neighbors agree" in done.stdout
    assert "Next: add --html" in done.stderr


def test_json_is_one_object_on_stdout(scored: Path, key: str) -> None:
    (found,) = json.loads(curate("inspect", key, "-k", "4", "--json", cwd=scored).stdout)["inspections"]
    assert found["query"]["key"] == key
    assert len(found["neighbors"]) == 4
    assert 0 <= found["other_verdict"] <= 4 and 0 <= found["other_label"] <= 4


def test_a_page_and_an_image_from_outside(scored: Path, world: Any, tmp_path: Path) -> None:
    image = next(world.test.glob("*/*.jpg"))
    done = curate("inspect", str(image), "--html", str(tmp_path / "sheet.html"), cwd=scored)
    assert done.returncode == 0, done.stderr
    assert "declares" in done.stdout
    assert f"Next: open {tmp_path}/sheet.html" in done.stderr
    assert (tmp_path / "sheet.html").read_text().startswith("<!doctype html>")


def test_disagreement_lists_images_and_its_page_shows_them(scored: Path, tmp_path: Path) -> None:
    done = curate("inspect", "--disagreement", "--top", "3", "--html", str(tmp_path / "sheet.html"), cwd=scored)
    assert done.returncode == 0, done.stderr
    assert "How many of 10 nearest neighbors have another verdict or label" in done.stdout
    assert "Neighbors by exact search" in done.stderr and "Next: open" in done.stderr
    found = json.loads(curate("inspect", "--disagreement", "--top", "3", "--json", cwd=scored).stdout)
    counts = [inspection["other_verdict"] for inspection in found["inspections"]]
    assert counts == sorted(counts, reverse=True) and len(counts) <= 3
    assert (tmp_path / "sheet.html").read_text().count('<section aria-labelledby="query') == len(counts)
    assert found["index"]["recall_at_10"] == 1


def test_near_duplicates_are_the_groups_that_the_export_drops(scored: Path, tmp_path: Path) -> None:
    done = curate("inspect", "--near-duplicates", "--radius", "8", cwd=scored)
    assert done.returncode == 0, done.stderr
    assert "curate export --drop-near-duplicates" in done.stderr
    found = json.loads(curate("inspect", "--near-duplicates", "--radius", "8", "--json", cwd=scored).stdout)
    flags = ("--keep", "all", "--drop-near-duplicates", "--radius", "8", "--json")
    summary = json.loads(curate("export", "--out", str(tmp_path / "clean"), *flags, cwd=scored).stdout)
    assert found["num_redundant"] == summary["dropped"].get("near_duplicate", 0)
    assert summary["kept"] + found["num_redundant"] == summary["pool"] == found["num_images"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("000990001",), 2, "has no shard 00099"),
        (("nowhere.jpg",), 2, "neither a file nor a key"),
        (("000000001", "--run", "nowhere"), 1, "run `curate score` first"),
        (("000000001", "-k", "0"), 2, "--neighbors"),
        ((), 2, "give one of KEY|IMAGE|NAME, --disagreement, --near-duplicates"),
        (("000000001", "--disagreement"), 2, "give one of"),
        (("--near-duplicates", "-k", "3"), 2, "--neighbors does not apply to --near-duplicates"),
        (("000000001", "--top", "3"), 2, "--top does not apply to KEY|IMAGE|NAME"),
        (("--near-duplicates", "--radius", "9"), 2, "--radius"),
        (("--disagreement", "--top", "0"), 2, "--top"),
    ],
)
def test_mistakes_are_one_sentence(scored: Path, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = curate("inspect", *arguments, cwd=scored)
    assert done.returncode == code
    assert sentence in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_help_names_every_option(tmp_path: Path) -> None:
    text = curate("inspect", "--help", cwd=tmp_path).stdout
    for name in ("pool", "run", "neighbors", "html", "config", "json"):
        assert f"--{name}" in text
