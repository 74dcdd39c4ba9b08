"""The pages: every link leads somewhere, every page is in the navigation, and the code of `python.md` runs."""

import re
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import World

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists() and target.is_relative_to(ROOT), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def prose(page: Path) -> str:
    """The text of a page without its code blocks and code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    found = set[str]()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(name if name not in found else f"{name}-1")
    return found


def test_every_page_is_in_the_navigation_and_is_linked_from_the_start() -> None:
    navigation = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    pages = {page.name for page in DOCS.glob("*.md")}
    assert sorted(navigation) == sorted(pages)
    assert pages - {"index.md"} <= set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text()))


def test_the_readme_is_short_and_shows_what_the_commands_printed() -> None:
    readme, page = (ROOT / "README.md").read_text(), (DOCS / "first-run.md").read_text()
    assert len(readme.splitlines()) <= 120
    shown = readme.split("<!-- outputs -->\n")[1].split("<!-- /outputs -->")[0].splitlines()[1:-1]
    assert len([line for line in shown if line.startswith("$ curate ")]) == 5
    assert set(shown) <= set(page.splitlines())


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={"NO_MKDOCS_2_WARNING": "1", "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'src="../found.jpg"' in (tmp_path / "site" / "first-run" / "index.html").read_text()


def test_the_code_of_the_python_page_runs(
    untrained: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(untrained, home)
    (home / "crawl").symlink_to(world.root / "crawl")
    monkeypatch.chdir(home)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for code in re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), re.DOTALL | re.MULTILINE):
            exec(code, names)
    assert "images in clean" in capsys.readouterr().out
    assert len(names["rows"]) == names["table"].num_rows == len(names["pool"]) > 0
    assert names["logits"].shape == (2, 5)
