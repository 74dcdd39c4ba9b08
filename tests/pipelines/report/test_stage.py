"""The page as a person opens it: in a real browser, made of a pool that would do harm."""

import base64
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from markupsafe import escape
from PIL import Image

from models.classifier import Classifier
from models.detector import Detector
from models.recipe import Recipe
from pipelines import ingest, report, score, toy, train
from pipelines.errors import BadInput, Incompatible, MissingArtifact
from pipelines.images.check import foreign_images
from pipelines.pool.manifest import Pool
from pipelines.report import ReportConfig, Summary, maps, pictures
from pipelines.report.history import toml
from pipelines.run import model, outside, quality
from pipelines.storage.atomic import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<img src=x onerror=alert(1)>"
EVIL_CLASS = '"><svg onload=alert(2)>'
CLASSES = (EVIL_CLASS, "disc", "square", "stripes", "triangle")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored pool, its run and its labeled set; file names, captions, a class and a reject's name are hostile."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    toy.make(root, num_real=1, alpha=0, labels_per_class=4, num_test=150)
    with tarfile.open(root / "crawl.tar", "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for i, file in enumerate(sorted((root / "test").glob("*/*.jpg"))):
            add(f"{i:03d}{EVIL}.jpg", file.read_bytes())
            add(f"{i:03d}{EVIL}.txt", b"</span><script>alert(3)</script>")
            add(f"{i:03d}{EVIL}.json", json.dumps({"url": f"https://evil{i % 3}.invalid/<b>"}).encode())
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(out, "PNG")
        add("photo.png", out.getvalue())
        add(f"empty{EVIL}.jpg", b"")
        add(f"page{EVIL}.jpg", b"<html><script>alert(4)</script>")
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl.tar"),), pool=root / "pool", jobs=1))
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=CLASSES, method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=40,
        pool="pool",
    )  # fmt: skip
    model.save(root / "run" / "model", config, Classifier("small", len(CLASSES)).eval(), Detector().eval())
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))
    training = train.TrainConfig(
        labeled=root / "seed", pool=root / "pool", run=root / "run", recipe=Recipe(num_steps=40)
    )
    write_json(
        root / "run" / "run.json",
        {
            "config": training.model_dump(mode="json"),
            "versions": {"torch": "2.0"},
            "summary": {"seconds": 1.0, "alarms": ["Something can be mended."]},
        },
    )
    lines = [
        {"step": step, "sup_real": 9 / step, "queue_score": 0.5, "dummy_share": 0.1, "pseudo_label_share/0": 0.2}
        for step in range(10, 50, 10)
    ]
    (root / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5')
    return root


def configured(home: Path) -> train.TrainConfig:
    return train.TrainConfig(labeled=home / "seed", pool=home / "pool", run=home / "run", recipe=Recipe(num_steps=40))


def settings(home: Path, **others: Any) -> ReportConfig:
    return ReportConfig(**{"pool": home / "pool", "run": home / "run", "map": "pca", "device": "cpu", **others})


@pytest.fixture(scope="module")
def written(home: Path) -> Summary:
    return report.run(settings(home))


@pytest.fixture(scope="module")
def page(written: Summary) -> str:
    return Path(written.out).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here to open the page with: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


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


# In the browser


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


# The text


class Outline(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.drawings: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        self.drawings += [found] if tag == "svg" else []


def test_charts_say_what_they_show_and_nothing_is_asked_for_from_outside(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    charts = [drawing for drawing in outline.drawings if drawing["class"] == "chart"]
    assert len(charts) >= 6
    for chart in charts:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= set(outline.ids)
    assert all(drawing.get("aria-hidden") == "true" for drawing in outline.drawings if drawing not in charts)
    for link in outline.links:
        assert link.startswith("data:image/webp;base64,") or link.removeprefix("#") in outline.ids


def test_the_page_and_the_summary_tell_the_same(home: Path, written: Summary, page: str) -> None:
    assert written.num_images == 151 and written.num_rejected == 2 and written.num_unscored == 0
    assert written.num_bytes == len(page.encode())
    assert written.out == str(home / "run" / "report.html")
    assert written.audit is not None and written.audit.num_labeled == 20 and len(written.audit.labeled_probs) == 20
    assert "Something can be mended." in page  # the training's alarm
    assert (
        page.index("Something can be mended.") < page.index('class="tiles"') < page.index('id="pool"')
    )  # warnings first
    assert "20 labeled images" in page and f"{written.synthetic_share:.1%}" in page
    assert "domain" in {each.name for each in written.audit.properties}


def test_the_page_says_how_far_to_trust_the_detector(home: Path, page: str, tmp_path: Path) -> None:
    assert quality.UNMEASURED in page  # the model of the other tests was never measured
    assert all(f"evil{i}.invalid" in page for i in range(3))  # the domains
    shutil.copytree(home / "run", tmp_path / "run")
    rng = torch.Generator().manual_seed(0)
    weak = quality.measure(torch.randn(500, generator=rng), torch.randn(50, generator=rng), declared_share=0.031)
    quality.save(tmp_path / "run", weak)
    text = Path(report.run(settings(home, run=tmp_path / "run")).out).read_text(encoding="utf-8")
    assert quality.UNMEASURED not in text
    assert text.count("It can hardly tell these images apart: do not delete by it.") == 2  # overview and section
    for statement in weak.statements:
        assert str(escape(statement)) in text
    assert "3.1%" in text and "no upper bound is known" in text
    body = text.split("<body>")[1].replace("curate export --out clean/", "")
    assert "clean" not in body.replace("That does not make the pool clean", "")


def test_thumbnails_are_small_and_carry_pixels_alone(page: str) -> None:
    sizes = set()
    for data in set(re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page)):
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            sizes.add(picture.size)
            assert not picture.getexif() and set(picture.info) <= {"loop", "background", "timestamp", "duration"}
    assert sizes == {(32, 32), (256, 192), (112, 84), (56, 42), (520, 480)}  # the last one holds the tiles of the map


@pytest.mark.parametrize("side", [48, 300])
def test_pictures_that_nothing_compresses_keep_the_page_under_5_mb(side: int) -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "PNG")
    with foreign_images():
        for format_, most in (
            (pictures.LARGE, pictures.LARGE_BYTES),
            (pictures.SMALL, pictures.SMALL_BYTES),
            (pictures.TINY, pictures.TINY_BYTES),
        ):
            assert len(pictures.bounded(out.getvalue(), format_, most).content) <= most
    galleries = 4 * pictures.GALLERY * pictures.LARGE_BYTES  # one is of the comparison
    classes = 2 * pictures.CLASSES_SHOWN * pictures.CLASS_PICTURES * pictures.SMALL_BYTES
    assert (galleries + classes + pictures.NEIGHBOR_BYTES + maps.SHEET_BYTES) * 4 / 3 < 4_200_000


def test_configurations_repeat_the_stages(home: Path, page: str) -> None:
    training = train.TrainConfig(
        labeled=home / "seed", pool=home / "pool", run=home / "run", recipe=Recipe(num_steps=40)
    )
    assert toml(training.model_dump(mode="json")).replace('"', "&#34;") in page
    assert f"curate ingest {home}/crawl.tar --config ingest-1.toml" in page


# What need not be there


def test_a_pool_alone_is_shown_with_what_to_run(home: Path, tmp_path: Path) -> None:
    summary = report.run(settings(home, run=tmp_path / "run"))
    text = (tmp_path / "run" / "report.html").read_text()
    assert summary.audit is None and summary.synthetic_share is None
    assert summary.next.startswith("curate train --labeled SEED") and "No scores yet." in text
    assert text.count("<img src=") == 24


def test_a_trained_run_without_scores_says_to_score(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run" / "model", tmp_path / "run" / "model")
    assert report.run(settings(home, run=tmp_path / "run")).next.startswith("curate score --pool")


def test_a_run_without_a_detector(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run" / "model", tmp_path / "run" / "model")
    values = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    write_json(tmp_path / "run" / "model" / "config.json", values | {"method": "fixmatch", "has_detector": False})
    score.run(score.ScoreConfig(pool=home / "pool", run=tmp_path / "run", device="cpu"))
    summary = report.run(settings(home, run=tmp_path / "run", labeled=home / "seed"))
    text = Path(summary.out).read_text()
    assert summary.synthetic_share is None and summary.audit is not None
    assert all(each.auroc is None for each in summary.audit.properties) and not summary.audit.stability
    assert any(each.difference is not None for each in summary.audit.properties)
    assert "No detector." in text and "Called synthetic" not in text and "Most synthetic" not in text
    assert ">Unsure<" not in text


def test_a_labeled_set_that_is_gone_is_said_to_be_and_a_wrong_one_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    values["config"]["labeled"] = str(tmp_path / "moved")
    write_json(tmp_path / "run" / "run.json", values)
    summary = report.run(settings(home, run=tmp_path / "run"))
    assert summary.audit is not None and summary.audit.num_labeled == 0
    assert "The labeled set is not where training read it" in Path(summary.out).read_text()
    with pytest.raises(BadInput, match="moved"):
        report.run(settings(home, run=tmp_path / "run", labeled=tmp_path / "moved"))


def test_scores_of_another_model_and_a_missing_pool_are_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    weights = tmp_path / "run" / "model" / "detector.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(Incompatible, match="run `curate score`"):
        report.run(settings(home, run=tmp_path / "run"))
    with pytest.raises(MissingArtifact, match="curate ingest"):
        report.run(settings(home, pool=tmp_path / "nothing"))
    with pytest.raises(BadInput, match="--out"):
        report.run(settings(home, run=tmp_path / "none", out=tmp_path / "run" / "run.json" / "page.html"))


# Compared with an earlier run


def test_an_earlier_run_is_compared_image_by_image(home: Path, tmp_path: Path) -> None:
    earlier = shutil.copytree(home / "run", tmp_path / "earlier")
    file = next((earlier / "scores").glob("*.parquet"))
    table = pq.read_table(file)
    then = ["synthetic"] * 10 + ["unsure"] * 5 + table["verdict"].to_pylist()[15:]
    prob = np.concatenate([[0.999], table["prob_synthetic"].to_numpy()[1:]]).astype(np.float32)
    for name, values in (("verdict", then), ("prob_synthetic", prob)):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values))
    pq.write_table(table, file)
    summary = report.run(settings(home, against=earlier, out=tmp_path / "page.html"))
    now = pq.read_table(home / "run" / "scores" / file.name)
    changed = sum(one != other for one, other in zip(then, now["verdict"].to_pylist(), strict=True))
    assert summary.num_changed == changed > 0
    text = (tmp_path / "page.html").read_text()
    assert f"{changed} of 151 images have another verdict" in text and "0 another pseudo-label" in text
    assert text.index("The largest changes of the score") < text.index("was 0.999")
    with pytest.raises(MissingArtifact, match="--against"):
        report.run(settings(home, against=tmp_path / "nothing"))


# The size of the pool


@pytest.mark.slow
def test_pools_of_any_size_make_pages_of_one_size(home: Path, written: Summary, tmp_path: Path) -> None:
    """Ten times the shards, each with its own digests, add their numbers to the page and nothing else."""
    pool, run = tmp_path / "pool", tmp_path / "run"
    shutil.copytree(home / "run" / "model", run / "model")
    shutil.copyfile(home / "run" / "thresholds.json", run / "thresholds.json")
    for folder in (pool / "rejects", run / "scores", run / "embeddings"):
        folder.mkdir(parents=True)
    rows, scores = (pq.read_table(home / part / "00000.parquet") for part in ("pool", "run/scores"))
    for number in range(10):
        shard = f"{number:05d}"
        keys = [shard + key[5:] for key in rows["key"].to_pylist()]
        digests = [hashlib.sha256(f"{shard}{digest}".encode()).hexdigest() for digest in rows["sha256"].to_pylist()]
        table = rows
        for name, values in (("key", keys), ("sha256", digests), ("shard", [shard] * len(keys))):
            table = table.set_column(rows.column_names.index(name), rows.schema.field(name), pa.array(values))
        pq.write_table(table, pool / f"{shard}.parquet")
        mark = {**scores.schema.metadata, b"shard": Pool(pool).digest(shard).encode()}
        named = scores.set_column(0, scores.schema.field("key"), pa.array(keys))
        pq.write_table(named.replace_schema_metadata(mark), run / "scores" / f"{shard}.parquet")
        for source, target in (
            (home / "pool" / "00000.tar", pool / f"{shard}.tar"),
            (home / "pool" / "00000_stats.json", pool / f"{shard}_stats.json"),
            (home / "pool" / "rejects" / "00000.parquet", pool / "rejects" / f"{shard}.parquet"),
            (home / "run" / "embeddings" / "00000.npy", run / "embeddings" / f"{shard}.npy"),
        ):
            shutil.copyfile(source, target)
    summary = report.run(settings(home, pool=pool, run=run, labeled=home / "seed"))
    assert summary.num_images == 10 * written.num_images and summary.num_rejected == 10 * written.num_rejected
    assert (
        summary.num_bytes < written.num_bytes + 100_000 + maps.SHEET_BYTES * 4 / 3
    )  # more of the map's places are taken


def test_scores_from_outside_and_declared_images_are_on_the_page(untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained / "run", tmp_path / "run")
    pool = Pool.open(untrained / "pool")
    keys = [key for table in pool.tables(["key"]) for key in table["key"].to_pylist()]
    pq.write_table(pa.table({"key": keys[:100], "value": [0.25] * 50 + [0.75] * 50}), tmp_path / "a.parquet")
    outside.store(tmp_path / "run", outside.read(pool, [f"nice={tmp_path / 'a.parquet'}"]), trained=False)
    written = report.run(settings(untrained, run=tmp_path / "run", out=tmp_path / "page.html"))
    page = Path(written.out).read_text(encoding="utf-8")
    (row,) = re.findall(r'<tr><th scope="row" class="name">nice</th>.*?</tr>', page)
    assert [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)][:4] == ["100", "0.25", "0.5", "0.75"]
    declared = sum(kind == "camera" for table in pool.tables(["declared"]) for kind in table["declared"].to_pylist())
    assert declared and f"of {declared} images; 95 % confidence interval" in page
