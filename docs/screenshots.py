"""Takes the pictures of `curate review` that review.md shows: a grid, and one image with its neighbors.

    python docs/screenshots.py FOLDER

FOLDER is that of `curate demo --out FOLDER`, with its pool and run. It needs Playwright and Chromium (`apt install
chromium`), replaces `review.png` and `review-image.png`, and marks nothing.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WINDOW = {"width": 1280, "height": 800}

# Pictures for everyone show no path of the machine that they were taken on.
_SHORTEN = """(home) => {
    for (const fact of document.querySelectorAll("#viewer-facts dd")) {
        fact.textContent = fact.textContent.replace(home, "");
    }
}"""


def main() -> None:
    """Take both pictures."""
    home = Path(sys.argv[1])
    with _served(home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        light = browser.new_page(viewport=WINDOW, color_scheme="light")
        light.goto(address)
        _settled(light)
        light.screenshot(path=DOCS / "review.png")
        dark = browser.new_page(viewport=WINDOW, color_scheme="dark")
        dark.goto(f"{address}#order=other_verdict&marked=any")
        _settled(dark)
        dark.keyboard.press("Enter")
        dark.wait_for_selector("#viewer-neighbors img")
        _settled(dark)
        dark.evaluate(_SHORTEN, f"{home.resolve()}/")
        dark.screenshot(path=DOCS / "review-image.png")
        browser.close()


@contextmanager
def _served(home: Path) -> Iterator[str]:
    """The address of a review of a folder's pool."""
    command = [sys.executable, "-m", "curate", "review", "--no-open", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent.resolve())}
    with subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        try:
            for line in process.stderr:
                said += line
                if found := re.search(r"http://\S+", line):
                    yield found.group()
                    return
            raise SystemExit(f"curate review failed:\n{said}")
        finally:
            process.kill()


def _settled(page: Page) -> None:
    """Wait until all pictures in the window are loaded."""
    page.wait_for_selector("#cell-0 img")
    page.wait_for_load_state("networkidle")
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")


if __name__ == "__main__":
    main()
