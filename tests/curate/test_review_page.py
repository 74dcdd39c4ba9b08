"""`curate review` in a real browser: what a person does there, and what a kill or a hostile crawl or site gets."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.classifier import Classifier
from models.detector import Detector
from pipelines import ingest, score
from pipelines.pool.manifest import Pool
from pipelines.run import marks, model, outside
from tests.curate.reviewing import Server, review

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def hostile(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crawl whose folders and files, and a labeled set whose classes, are named to do harm."""
    home = tmp_path_factory.mktemp("hostile")
    crawl = home / "crawl" / HOSTILE
    crawl.mkdir(parents=True)
    for number, path in enumerate(sorted(world.test.glob("*/*.jpg"))[:24]):
        shutil.copy(path, crawl / f"{HOSTILE}{number}.jpg")
    ingest.run(ingest.IngestConfig(sources=(str(home / "crawl"),), pool=home / "pool", jobs=1))
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=(f'"{HOSTILE}', "'-->{{ 7*7 }}"), method="rsmatch", backbone="small", image_size=32, detector_size=32,
        num_steps=0, pool="pool",
    )  # fmt: skip
    model.save(home / "run" / "model", config, Classifier("small", 2).eval(), Detector().eval())
    score.run(score.ScoreConfig(pool=home / "pool", run=home / "run", device="cpu"))
    return home


@contextmanager
def page_of(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """The page at `url`; nothing may go wrong on it, and nothing may ask the person anything."""
    with browser.new_context(viewport={"width": 1200, "height": 800}, **options) as context:
        page, wrong = context.new_page(), []
        page.set_default_timeout(20_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.goto(url)
        page.wait_for_selector("#cell-0 img")
        yield page
        assert wrong == []


def counts(page: Any) -> str:
    return str(page.inner_text("#counts"))


def said(page: Any, words: str) -> None:
    page.wait_for_function("words => document.getElementById('said').textContent.includes(words)", arg=words)


def verdicts(home: Path) -> list[tuple[str, str | None]]:
    return [(mark.verdict, mark.label) for mark in marks.read(home / "run").current.values()]


def test_look_filter_mark_undo_and_reload(home: Path, browser: Any) -> None:
    with review(home) as server, page_of(browser, server.url) as page:
        assert "token" not in page.url
        total = Pool.open(home / "pool").num_images
        assert page.inner_text("#shown") == f"{total:,} images"
        first = page.get_attribute("#cell-0", "aria-label")[:9]
        for key, words in (("r", f"{first} real"), ("s", "synthetic"), ("2", "real: disc"), ("x", "skipped")):
            page.keyboard.press(key)
            said(page, words)
        assert verdicts(home) == [("real", None), ("synthetic", None), ("real", "disc"), ("skip", None)]
        assert counts(page).split("\n") == ["2 real, 1 labeled", "1 synthetic", "1 skipped"]
        page.keyboard.press("Control+z")
        said(page, "Undone")
        assert page.get_attribute("#grid", "aria-activedescendant") == "cell-3"
        page.keyboard.press("u")
        page.wait_for_function("() => document.getElementById('counts').textContent.includes('0 labeled')")
        assert verdicts(home) == [("real", None), ("synthetic", None)]

        page.keyboard.press("Shift+ArrowDown")  # a run of images at once
        assert page.inner_text("#chosen") != ""
        page.keyboard.press("l")
        page.keyboard.type("tri")
        page.keyboard.press("Enter")
        said(page, "images real: triangle")
        assert verdicts(home).count(("real", "triangle")) > 5
        page.keyboard.press("u")
        said(page, "Undone")

        page.select_option("[name=marked]", "synthetic")
        page.wait_for_function("() => document.getElementById('shown').textContent === '1 image'")
        page.reload()  # keeps the filter
        page.wait_for_function("() => document.getElementById('shown').textContent === '1 image'")
        page.wait_for_selector("#cell-0 img")
        assert "marked synthetic" in page.get_attribute("#cell-0", "aria-label")
        page.click("text=Clear filters")
        page.wait_for_function(
            "total => document.getElementById('shown').textContent.startsWith(total)", arg=str(total - 2)
        )
        page.select_option("[name=label]", "square")
        page.evaluate("document.querySelector('[name=low]').value = 1")
        page.dispatch_event("[name=low]", "change")
        page.wait_for_selector("text=No image passes these filters.")


def test_an_image_large_with_its_neighbors(home: Path, browser: Any) -> None:
    pool = Pool.open(home / "pool")
    keys = [key for table in pool.tables(["key"]) for key in table["key"].to_pylist()]
    pq.write_table(pa.table({"key": keys, "value": [0.123456] * len(keys)}), home / "a.parquet")
    outside.store(home / "run", outside.read(pool, [f"nice={home / 'a.parquet'}"]), trained=False)
    with review(home) as server, page_of(browser, server.url) as page:
        key = page.get_attribute("#cell-0", "aria-label")[:9]
        page.keyboard.press("Enter")
        page.wait_for_selector("#viewer-neighbors button")
        assert page.inner_text("#viewer-name") == key
        assert "0.1235" in page.inner_text("#viewer-facts")
        assert page.locator("#viewer-neighbors button").count() == 12
        page.wait_for_function("() => document.getElementById('viewer-image').naturalWidth === 32")
        page.keyboard.press("s")  # marks it, and goes on
        page.wait_for_function("key => document.getElementById('viewer-name').textContent !== key", arg=key)
        assert page.inner_text("#viewer-position").startswith("2 of")
        page.keyboard.press("u")  # and comes back
        page.wait_for_function("key => document.getElementById('viewer-name').textContent === key", arg=key)
        neighbor = page.get_attribute("#viewer-neighbors button", "data-key")
        page.click("#viewer-neighbors button")
        page.wait_for_function("key => document.getElementById('viewer-name').textContent === key", arg=neighbor)
        page.keyboard.press("r")
        page.wait_for_selector("#viewer-verdict >> text=marked real")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "grid"
        assert [mark.key for mark in marks.read(home / "run").current.values()] == [neighbor]


def test_sigkill_between_marks_costs_none_of_them(home: Path, browser: Any) -> None:
    keys = []
    with review(home) as server, page_of(browser, server.url) as page:
        for _ in range(3):
            active = page.get_attribute("#grid", "aria-activedescendant")
            keys.append(page.get_attribute(f"#{active}", "aria-label")[:9])
            page.keyboard.press("s")
            said(page, keys[-1])
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with (home / "run" / "marks.jsonl").open("a") as file:
        file.write('{"sha256": "0123')  # what a kill in the middle of a line leaves
    with review(home) as server, page_of(browser, f"{server.url}#marked=synthetic&order=pool") as page:
        page.wait_for_function("() => document.getElementById('shown').textContent === '3 images'")
        assert "3 synthetic" in counts(page)
        server.process.send_signal(signal.SIGINT)
        out, err = server.process.communicate(timeout=30)
        assert server.process.returncode == 0, err
        assert "synthetic  3" in out and "The last mark of a previous session was lost" in err and "--no-resume" in err
    assert [mark.key for mark in marks.read(home / "run").current.values()] == keys


def test_hostile_names_are_text(hostile: Path, browser: Any) -> None:
    with review(hostile) as server, page_of(browser, server.url) as page:
        page.keyboard.press("1")
        said(page, f'real: "{HOSTILE}')
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        page.wait_for_selector("#viewer-neighbors button")
        assert HOSTILE in page.inner_text("#viewer-facts")
        assert HOSTILE in page.inner_text("#viewer-verdict")
        page.keyboard.press("l")
        assert page.inner_text("#picker-classes").startswith(f'"{HOSTILE}')
        assert "'-->{{ 7*7 }}" in page.inner_text("#picker-classes")
        assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(served: Server, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

    def check(page: Any) -> None:
        # A mark fades its image: axe must see the end of that.
        page.evaluate("Promise.all(document.getAnimations().map(animation => animation.finished))")
        result = axe.Axe().run(page, options={"resultTypes": ["violations"]})
        found = [(item["id"], item["nodes"][0]["html"]) for item in result.response["violations"]]
        assert found == []

    with page_of(browser, served.url, color_scheme=scheme) as page:
        for key in ("r", "s", "1", "x", "Space"):
            page.keyboard.press(key)
        said(page, "skipped")
        check(page)
        for keys, selector in (
            ("Enter", "#viewer-neighbors button"),
            ("l", "#picker[open]"),
            ("Escape Escape ?", "#help"),
            ("Escape a", "#all"),
            ("Escape m", "#map"),
        ):
            for key in keys.split():
                page.keyboard.press(key)
            page.wait_for_selector(selector)
            check(page)
        page.set_viewport_size({"width": 390, "height": 780})
        check(page)
        page.keyboard.press("Escape")
        page.click("#open-filters")
        check(page)


def test_search_mark_all_that_match_and_undo(home: Path, browser: Any) -> None:
    pool = Pool.open(home / "pool")
    captions = [caption for table in pool.tables(["caption"]) for caption in table["caption"].to_pylist()]
    word = str(captions[0]).split()[-1]
    number = sum(word in (caption or "") for caption in captions)
    with review(home) as server, page_of(browser, server.url) as page:
        assert page.inner_text("#progress").strip() == "marked 0 of 100 suggested"
        page.keyboard.press("/")
        page.keyboard.type(f"caption:{word}")
        shown = "1 image" if number == 1 else f"{number} images"
        page.wait_for_function("words => document.getElementById('shown').textContent === words", arg=shown)
        page.keyboard.press("Enter")  # back to the images
        page.keyboard.press("a")
        assert page.inner_text("#all-count") == shown
        assert page.inner_text("#all-filters") == f"search caption:{word}; not marked yet"
        page.click("text=All synthetic")
        said(page, f"{'1 images' if number == 1 else shown} synthetic")
        page.wait_for_selector("text=No image passes these filters.")
        assert [verdict for verdict, _ in verdicts(home)] == ["synthetic"] * number
        page.keyboard.press("u")
        said(page, "Undone")
        assert verdicts(home) == []
        page.click("text=Clear filters")
        page.wait_for_function(
            "total => document.getElementById('shown').textContent.startsWith(total)", arg=f"{len(captions):,}"
        )


def test_an_outline_on_the_map_shows_its_images(served: Server, browser: Any) -> None:
    with page_of(browser, f"{served.url}#marked=any") as page:
        total = page.inner_text("#shown")
        page.keyboard.press("m")
        page.wait_for_function("() => document.getElementById('map-said').textContent.includes('variance')")
        colored = page.evaluate(
            """() => {
                const canvas = document.getElementById('map-dots');
                const bytes = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                let number = 0;
                for (let i = 0; i < bytes.length; i += 4) {
                    number += bytes[i + 3] === 255 && Math.abs(bytes[i] - bytes[i + 2]) > 40;
                }
                return number;
            }"""
        )
        assert colored > 1000  # dots of the view are in the color of their verdict
        box = page.locator("#map-dots").bounding_box()
        corners = [
            (box["x"] + box["width"] * x, box["y"] + box["height"] * y)
            for x, y in ((0.02, 0.02), (0.98, 0.02), (0.02, 0.98))
        ]
        page.mouse.move(*corners[0])
        page.mouse.down()
        for corner in (*corners[1:], corners[0]):
            page.mouse.move(*corner, steps=8)
        page.mouse.up()
        page.wait_for_selector("#region:not([hidden])")
        page.wait_for_function(
            "total => !['Loading', total].includes(document.getElementById('shown').textContent)", arg=total
        )
        page.click("text=Remove")
        page.wait_for_function("total => document.getElementById('shown').textContent === total", arg=total)


def test_a_space_that_is_higher_than_a_browser_draws_is_scrolled_to_its_end(served: Server, browser: Any) -> None:
    """The page of a million images, with fewer images and a lower space: wheel, scroll bar and keys go everywhere."""

    def lower(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('data-max-space="8000000"', 'data-max-space="2500"'))

    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        page = context.new_page()
        page.goto(served.url)
        page.route(f"http://127.0.0.1:{served.port}/", lower)
        page.goto(f"http://127.0.0.1:{served.port}/#marked=any&order=pool")
        page.reload()
        page.wait_for_selector("#cell-0 img")
        total = int(page.evaluate("document.body.dataset.total"))
        assert page.evaluate("document.getElementById('space').clientHeight") == 2500

        def visible() -> list[int]:
            return sorted(
                page.evaluate(
                    """() => {
                        const box = document.getElementById('grid').getBoundingClientRect();
                        return [...document.querySelectorAll('.cell')].filter((cell) => {
                            const own = cell.getBoundingClientRect();
                            return own.bottom > box.top && own.top < box.bottom;
                        }).map((cell) => Number(cell.dataset.position));
                    }"""
                )
            )

        top = visible()
        assert top[0] == 0
        page.locator("#grid").hover()
        page.mouse.wheel(0, 400)  # two rows further, not the many rows that its share of the bar stands for
        page.wait_for_function("() => document.getElementById('grid').scrollTop === 400")
        page.wait_for_timeout(100)
        assert 0 < visible()[0] < top[-1]
        page.evaluate("document.getElementById('grid').scrollTop = 1e6")
        page.wait_for_selector(f"#cell-{total - 1} img")
        assert visible()[-1] == total - 1
        page.evaluate("document.getElementById('grid').scrollTop = 0")
        page.wait_for_function("() => document.getElementById('cell-0')")
        assert visible() == top
        for key, position in (("End", total - 1), ("ArrowLeft", total - 2), ("Home", 0)):
            page.keyboard.press(key)
            page.wait_for_selector(f"#cell-{position} img")
            assert position in visible()


def test_a_phone_shows_all_of_it(home: Path, browser: Any) -> None:
    with (
        review(home) as server,
        browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True) as context,
    ):
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("#cell-0 img")

        def fits() -> None:
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            wide = """() => [...document.querySelectorAll('button, input, select, p')].filter((each) => {
                const box = each.getBoundingClientRect();
                return box.width && (box.right > 391 || box.left < -1) && !each.closest('.segments');
            }).map((each) => each.outerHTML.slice(0, 80))"""
            assert page.evaluate(wide) == []

        fits()
        page.tap("#open-filters")
        fits()
        page.tap("text=Unsure")
        page.tap("#close-filters")
        page.tap("#selecting")
        page.wait_for_function("() => document.getElementById('shown').textContent.includes('image')")
        if page.locator(".cell").count():
            page.tap("#cell-0")
            page.wait_for_function("() => document.getElementById('chosen').textContent === '1 selected'")
        page.tap("#open-filters")
        page.tap("text=Clear filters")
        page.tap("#close-filters")
        page.wait_for_selector("#cell-1 img")
        page.tap("#selecting")
        page.tap("#cell-1")
        page.tap("#cell-1")  # the second tap opens it
        page.wait_for_selector("#viewer-neighbors button")
        fits()
        page.tap("#viewer [data-action=real]")
        page.wait_for_function("() => document.getElementById('counts').textContent.startsWith('1 real')")


# Where the focus is: its place in the order in which a person sees things, and whether he sees it.
FOCUSED = """() => {
    const aside = document.getElementById('aside'), focused = document.activeElement;
    const shown = focused.type === 'radio' ? focused.nextElementSibling : focused, box = shown.getBoundingClientRect();
    const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const part = ['header', 'aside', 'main', 'footer'].findIndex((name) => focused.closest(name));
    return {
        name: focused.id || focused.name || focused.textContent.trim(),
        place: [part, box.y + (part === 1 ? aside.scrollTop : 0), box.x],
        seen: shown.contains(top),
    };
}"""


def test_on_a_phone_the_keyboard_goes_through_what_is_seen(served: Server, browser: Any) -> None:
    with page_of(browser, served.url) as page:
        page.set_viewport_size({"width": 390, "height": 780})

        def tabs() -> list[dict[str, Any]]:
            """What Tab stops at, from the top of the page."""
            page.evaluate("document.activeElement.blur()")
            page.focus("#open-help")
            found = [page.evaluate(FOCUSED)]
            while True:
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement === document.body"):
                    return found
                found.append(page.evaluate(FOCUSED))

        for opens in (False, True):
            if opens:
                page.focus("#open-filters")
                page.keyboard.press("Enter")
                page.keyboard.press("Tab")
                assert page.evaluate("document.activeElement.id") == "search"  # the first of what has opened
            stops = tabs()
            assert [stop["name"] for stop in stops if not stop["seen"]] == []
            assert stops == sorted(stops, key=lambda stop: stop["place"])
            names = {stop["name"] for stop in stops}
            assert ("search" in names, "grid" in names, "Skip X" in names) == (opens, not opens, True)
        page.focus("#search")
        page.keyboard.press("Enter")  # shows what was found
        assert page.evaluate("document.activeElement.id") == "grid"


def test_only_what_is_in_the_window_is_drawn_and_fetched(scored: Path, served: Server, browser: Any) -> None:
    total = Pool.open(scored / "pool").num_images
    with page_of(browser, f"{served.url}#marked=any") as page:
        assert page.locator(".cell").count() < 100
        page.keyboard.press("End")
        page.wait_for_selector(f"#cell-{total - 1} img")
        assert page.locator(".cell").count() < 100
        assert page.locator("#cell-0").count() == 0
