"""The page as a person opens it: in a real browser, made of a pool that would do harm."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import Summary
from tests.pipelines.report.reports import CLASSES, EVIL, EVIL_CLASS


class Opened:
    """A page in the browser, with all that it said, asked for and popped up."""

    def __init__(self, browser: Any, path: str, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(Path(path).resolve().as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_whole_and_silent_and_hostile_names_are_text(
    browser: Any, written: Summary, scheme: str
) -> None:
    opened = Opened(browser, written.out, color_scheme=scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.evaluate("[...document.images].forEach(each => each.loading = 'eager')")
    page.wait_for_function("[...document.images].every(each => each.complete)", timeout=5000)
    assert page.evaluate("document.images.length") > 50
    assert page.evaluate("[...document.images].filter(each => !each.naturalWidth).length") == 0
    assert page.evaluate("document.querySelectorAll('[onerror], [onload], main script').length") == 0
    assert page.evaluate("document.scripts.length") == 2  # the page's own, and its data
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    text = page.inner_text("body")
    for hostile in (EVIL_CLASS, f"empty{EVIL}.jpg", "</span><script>alert(3)</script>"):
        assert hostile in text
    assert EVIL in page.evaluate("[...document.images].map(each => each.title).join()")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_script_but_the_pages_own_could_run(browser: Any, page: str, tmp_path: Path) -> None:
    injected = tmp_path / "injected.html"
    injected.write_text(page.replace("</main>", f"{EVIL}<script>alert(5)</script></main>"), encoding="utf-8")
    opened = Opened(browser, str(injected))
    opened.page.wait_for_timeout(200)
    assert len(opened.said) >= 2 and all("Content Security Policy" in said for said in opened.said)


def test_tables_sort_by_a_click_on_their_heads(browser: Any, written: Summary) -> None:
    page = Opened(browser, written.out).page
    head = page.locator("#classes th", has_text="Images")

    def column(number: int) -> list[str]:
        return list(
            page.eval_on_selector_all(f"#classes tbody td:nth-child({number})", "all => all.map(e => e.textContent)")
        )

    head.get_by_role("button").click()
    down = [int(text.replace(",", "")) for text in column(2)]
    assert down == sorted(down, reverse=True) and len(set(down)) > 1
    assert page.locator("#classes [aria-sort]").get_attribute("aria-sort") == "descending"
    head.get_by_role("button").press("Enter")
    assert [int(text.replace(",", "")) for text in column(2)] == down[::-1]
    page.locator("#classes th", has_text="Class").get_by_role("button").click()
    names = page.eval_on_selector_all("#classes tbody th", "all => all.map(e => e.textContent)")
    assert names == sorted(CLASSES) and page.locator("#classes [aria-sort]").count() == 1


def test_a_picture_opens_with_its_key_caption_url_reason_and_neighbors(browser: Any, written: Summary) -> None:
    opened = Opened(browser, written.out)
    page = opened.page
    first = page.locator("#pictures [data-picture]").first
    key = first.get_attribute("alt").split(":")[0]
    first.click()
    assert page.inner_text("#large-name") == key
    text = page.inner_text("#large")
    assert "</span><script>alert(3)</script>" in text and "https://evil" in text and EVIL in text
    assert re.search(r"because its score of 0\.\d{3} is", text)
    assert page.locator("#large-neighbors li").count() == 6
    assert page.evaluate("[...document.querySelectorAll('#large img')].every(each => each.naturalWidth > 0)")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#large-name") != key
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#large-name") == key
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible() and opened.said == []


def test_the_map_tells_and_lists_what_is_drawn_around(browser: Any, written: Summary) -> None:
    opened = Opened(browser, written.out)
    page = opened.page
    drawing = page.locator("#map .chart").first
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    x, y, key = page.evaluate("[map.x[0], map.y[0], map.keys[0]]")
    page.mouse.move(box["x"] + box["width"] * x / 500, box["y"] + box["height"] * y / 500)
    assert re.match(r"\d{9}, .*, (real|unsure|synthetic), 0\.\d+", page.inner_text("#tip"))
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    page.mouse.down()
    for across, down in ((1, 0), (1, 1), (0, 1)):
        page.mouse.move(box["x"] + (box["width"] - 2) * across + 1, box["y"] + (box["height"] - 2) * down + 1)
    page.mouse.up()
    assert page.inner_text("#region-head") == "151 images within the outline"
    assert key in page.input_value("#region-keys").split() and page.locator("#region-tiles li").count() == 151
    page.locator("#map .legend button", has_text="disc").click()
    number = page.evaluate("map.labels.filter(name => name === 'disc').length")
    assert page.inner_text("#region-head").startswith(f"{number} image") and opened.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, written: Summary, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = Opened(browser, written.out, color_scheme=scheme, bypass_csp=True).page
    for width, act in ((1280, "0"), (390, "0"), (390, "document.querySelector('#pictures [data-picture]').click()")):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        page.evaluate(act)
        result = axe.Axe().run(page, options={"resultTypes": ["violations"]})
        assert [(item["id"], item["nodes"][0]["html"]) for item in result.response["violations"]] == []


def test_it_fits_a_phone_and_paper(browser: Any, written: Summary) -> None:
    page = Opened(browser, written.out, viewport={"width": 390, "height": 800}, color_scheme="dark").page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.wait_for_function(
        """() => {
            const seen = [...document.querySelectorAll(".scroll")].filter((each) => each.checkVisibility());
            const wide = seen.filter((each) => each.scrollWidth > each.clientWidth);
            return wide.length && wide.every((each) => each.tabIndex === 0);
        }""",
        timeout=5000,
    )
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--text').trim()") == "#1b1b19"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0


def test_without_scripts_all_of_the_text_is_there(browser: Any, written: Summary) -> None:
    opened = Opened(browser, written.out, java_script_enabled=False)
    text = opened.page.inner_text("body")
    for words in ("What came in", "not an image", "disc", "bytes per pixel", "curate train --config train.toml"):
        assert words in text
    assert opened.page.locator("th button").count() == 0 and opened.said == []
    assert not opened.page.locator("#large").is_visible() and not opened.page.locator("#region").is_visible()
