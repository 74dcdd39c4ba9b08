"""The gallery against plain parquet: filters, orders, neighbors, marks of others."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import BadInput
from pipelines.pool.manifest import Pool
from pipelines.review import gallery as stage
from pipelines.review import region
from pipelines.review.filters import Filter
from pipelines.review.gallery import Gallery
from pipelines.review.neighborhood import NEIGHBORS
from pipelines.run import marks, outside, verdicts
from pipelines.run.marks import Judgment
from pipelines.run.scores import ScoredPool
from tests.conftest import World


@pytest.fixture(scope="module")
def scored(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of networks as they were born, with thresholds in the middle of their scores: a fifth is unsure."""
    run = shutil.copytree(untrained / "run", tmp_path_factory.mktemp("gallery") / "run")
    files = sorted((run / "scores").glob("*.parquet"))
    probs = np.concatenate([pq.read_table(file)["prob_synthetic"].to_numpy() for file in files])
    low, high = (float(value) for value in np.quantile(probs, (0.4, 0.6)))
    thresholds = replace(verdicts.load(run), real_below=low, synthetic_from=high)
    for file in files:
        table = pq.read_table(file)
        prob = table["prob_synthetic"].to_numpy()
        for name, values in (("synthetic", prob >= high), ("verdict", thresholds.verdicts(prob))):
            column = table.schema.get_field_index(name)
            table = table.set_column(column, table.schema.field(name), pa.array(values))
        pq.write_table(table, file)
    verdicts.save(run, thresholds)
    return run


@pytest.fixture
def run(scored: Path, tmp_path: Path) -> Path:
    shutil.copytree(scored, tmp_path / "run")
    return tmp_path / "run"


def open_gallery(world: World, run: Path) -> Gallery:
    return Gallery(ScoredPool.open(world.pool, run))


def plain(world: World, run: Path) -> list[dict[str, Any]]:
    opened = ScoredPool.open(world.pool, run)
    return list(pa.concat_tables(opened.rows(shard) for shard in opened.shards).to_pylist())


def test_filters_and_orders_are_those_of_a_plain_scan(world: World, run: Path) -> None:
    gallery, rows = open_gallery(world, run), plain(world, run)
    assert len(gallery) == len(rows)

    def expect(wanted: Filter, keep: Any, by: Any) -> None:
        expected = sorted((i for i, row in enumerate(rows) if keep(row)), key=lambda i: by(rows[i]))
        assert gallery.view(wanted).tolist() == expected

    label = gallery.classes[rows[0]["probs"].index(max(rows[0]["probs"]))]
    middle = sorted(row["prob_synthetic"] for row in rows)[len(rows) // 3]
    expect(Filter(order="pool"), lambda row: True, lambda row: 0)
    expect(
        Filter(order="synthetic", verdict="synthetic"),
        lambda row: row["verdict"] == "synthetic",
        lambda row: -row["prob_synthetic"],
    )
    expect(Filter(order="pool", verdict="unsure"), lambda row: row["verdict"] == "unsure", lambda row: 0)
    assert len(gallery.view(Filter(verdict="unsure"))) > len(rows) // 10
    expect(
        Filter(order="real", label=label), lambda row: row["pseudo_label"] == label, lambda row: row["prob_synthetic"]
    )
    expect(
        Filter(order="real", high=middle),
        lambda row: row["prob_synthetic"] <= middle,
        lambda row: row["prob_synthetic"],
    )
    suggested = gallery.view(Filter())
    assert sorted(suggested.tolist()) == list(range(len(rows)))
    counts = gallery.histogram(Filter(low=0.99))
    assert sum(counts) == len(rows) and len(counts) == stage.BINS


def test_disagreement_is_that_of_a_plain_search_and_is_kept(world: World, run: Path) -> None:
    gallery, rows = open_gallery(world, run), plain(world, run)
    assert gallery.neighborhood is not None
    vectors = np.concatenate([ScoredPool.open(world.pool, run).embeddings(shard) for shard in Pool(world.pool).shards])
    vectors = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    for i in (0, 100, len(rows) - 1):
        similar = vectors @ vectors[i]
        similar[i] = -2
        nearest = similar.argsort()[::-1][:NEIGHBORS]
        shares = [
            np.mean([rows[j]["pseudo_label"] != rows[i]["pseudo_label"] for j in nearest]),
            np.mean([rows[j]["synthetic"] != rows[i]["synthetic"] for j in nearest]),
        ]
        found = [gallery.neighborhood.other_label[i], gallery.neighborhood.other_verdict[i]]
        assert found == pytest.approx(shares, abs=1e-6)
    order = gallery.view(Filter(order="other_verdict"))
    assert (np.diff(gallery.neighborhood.other_verdict[order]) <= 0).all()

    seen: list[int] = []
    again = Gallery(ScoredPool.open(world.pool, run), lambda tick: seen.append(tick.done))
    assert not seen and again.neighborhood is not None
    assert (again.neighborhood.other_label == gallery.neighborhood.other_label).all()
    file = run / "review" / "neighborhood.npy"
    file.write_bytes(file.read_bytes()[:-9])  # cut: looked up anew
    healed = Gallery(ScoredPool.open(world.pool, run), lambda tick: seen.append(tick.done)).neighborhood
    assert seen and healed is not None and (healed.other_verdict == gallery.neighborhood.other_verdict).all()


def test_a_mark_wins_over_the_verdict_in_filters_and_another_page_sees_it(world: World, run: Path) -> None:
    mine, other = open_gallery(world, run), open_gallery(world, run)
    first, second, third, fourth = (mine.key(int(row)) for row in mine.view(Filter(order="synthetic"))[:4])
    label = next(name for name in mine.classes if name != mine.describe(mine.row(first))["pseudo_label"])
    mine.mark([first], Judgment(verdict="real", label=label))
    mine.mark([second], Judgment(verdict="synthetic"))
    mine.mark([fourth], Judgment(verdict="off-class"))
    mine.mark([third], Judgment(verdict="skip"))
    assert mine.counts() == {"real": 1, "synthetic": 1, "off-class": 1, "skip": 1, "labeled": 1}
    other.refresh()
    for gallery in (mine, other, open_gallery(world, run)):
        assert gallery.counts() == mine.counts()

        def keys(gallery: Gallery = gallery, **wanted: Any) -> list[str]:
            return [gallery.key(int(row)) for row in gallery.view(Filter(order="synthetic", **wanted))]

        assert first in keys(verdict="real") and first not in keys(verdict="synthetic")
        assert second in keys(verdict="synthetic") and third in keys(verdict="synthetic")
        assert first in keys(label=label)
        assert keys(marked="off-class") == [fourth] and fourth in keys(verdict="real")
        assert not any(fourth in keys(label=name) for name in gallery.classes)
        assert keys(marked="labeled") == keys(marked="real") == [first]
        assert keys(marked="yes") == [first, second, third, fourth]
        assert not {first, second, third, fourth} & set(keys(marked="no"))
    assert [mine.key(row) for row in other.undo()] == [third]
    mine.refresh()
    assert mine.counts()["skip"] == 0 and mine.can_undo


def test_bytes_and_detail_are_those_of_the_pool(world: World, run: Path) -> None:
    gallery, rows = open_gallery(world, run), plain(world, run)
    pool = Pool.open(world.pool)
    for row in (0, 700, len(rows) - 1):
        fact = rows[row]
        data = pool.tar(fact["shard"]).read_bytes()[fact["offset"] :][: fact["num_bytes"]]
        assert gallery.row(fact["key"]) == row and gallery.key(row) == fact["key"]
        assert gallery.sha256(row) == fact["sha256"] and gallery.content(row) == data
        detail = gallery.detail(row, 5)
        assert (detail["member"], detail["format"], detail["num_bytes"]) == (fact["member"], "jpg", len(data))
        assert detail["probs"][0]["label"] == fact["pseudo_label"]
        assert len(detail["neighbors"]) == 5 and row not in [other["row"] for other in detail["neighbors"]]
    with pytest.raises(BadInput, match="no scored image"):
        gallery.row("000990000")
    with pytest.raises(BadInput, match="none of the classes"):
        gallery.mark([rows[0]["key"]], Judgment(verdict="real", label="zebra"))
    assert not marks.path(run).exists()


def test_the_detail_has_scores_from_outside(world: World, run: Path, tmp_path: Path) -> None:
    assert open_gallery(world, run).detail(0, 1)["outside"] == {}
    key = plain(world, run)[3]["key"]
    pq.write_table(pa.table({"key": [key], "value": [0.25]}), tmp_path / "a.parquet")
    given = outside.read(Pool.open(world.pool), [f"nice={tmp_path / 'a.parquet'}"])
    outside.store(run, given, trained=False)
    gallery = open_gallery(world, run)
    assert [gallery.detail(row, 1)["outside"] for row in (3, 4)] == [{"nice": 0.25}, {"nice": None}]
    assert gallery.detail(3, 1)["member"] == plain(world, run)[3]["member"]


def test_without_a_detector_the_least_confident_come_first(world: World, run: Path) -> None:
    for path in (run / "scores").glob("*.parquet"):
        table = pq.read_table(path)
        for name in ("prob_synthetic", "synthetic", "verdict"):
            column = table.schema.get_field_index(name)
            table = table.set_column(
                column, table.schema.field(name), pa.nulls(table.num_rows, table.schema.field(name).type)
            )
        pq.write_table(table, path)
    gallery = open_gallery(world, run)
    assert not gallery.has_detector
    view = gallery.view(Filter(low=0.5))  # a range of scores there are none of changes nothing
    assert len(view) == len(gallery)
    assert gallery.confidence[view[:20]].mean() < gallery.confidence[view[-20:]].mean()
    assert gallery.describe(0)["verdict"] is None and gallery.describe(0)["prob_synthetic"] is None


def test_marks_of_images_that_are_not_in_the_pool_do_no_harm(world: World, run: Path) -> None:
    marks.append(run, [marks.Mark(sha256="0" * 64, key="gone", verdict="synthetic")])
    assert open_gallery(world, run).counts() == {"real": 0, "synthetic": 0, "off-class": 0, "skip": 0, "labeled": 0}


def test_a_search_finds_what_a_plain_scan_finds(world: World, run: Path) -> None:
    gallery, rows = open_gallery(world, run), Pool.open(world.pool).tables()
    said = [row for table in rows for row in table.to_pylist()]
    caption, domain = said[7]["caption"], said[7]["domain"]
    assert caption and domain  # the toy crawl has both

    def found(text: str) -> list[int]:
        return sorted(gallery.view(Filter(text=text)).tolist())

    def has(row: dict[str, Any], text: str) -> bool:
        columns = ("key", "member", "caption", "domain", "url", "uid")
        return any(text.lower() in (row[name] or "").lower() for name in columns)

    for word in (caption.split()[0].upper(), domain, said[7]["key"], "00005", "no such word"):
        assert found(word) == [i for i, row in enumerate(said) if has(row, word)]
    assert found(f"key:{said[7]['key']} {domain}") == [7]
    assert found(f'caption:"{caption}"') == [i for i, row in enumerate(said) if caption in (row["caption"] or "")]
    assert found(f"caption:{domain}") == [] and found("  ") == list(range(len(said)))
    assert 7 in found(f"url:{said[7]['url']}")  # the colon of https: names no column


def test_all_that_pass_a_filter_are_marked_as_one_action(world: World, run: Path) -> None:
    gallery = open_gallery(world, run)
    wanted = Filter(verdict="unsure", marked="no", label=gallery.classes[0])
    rows = gallery.view(wanted)
    first = gallery.key(int(gallery.view(Filter(verdict="real"))[0]))
    gallery.mark([first], Judgment(verdict="real"))
    with pytest.raises(BadInput, match=f"{len(rows)} images pass these filters by now, not 3"):
        gallery.mark_all(wanted, 3, Judgment(verdict="synthetic"))
    assert gallery.counts()["synthetic"] == 0
    assert gallery.mark_all(wanted, len(rows), Judgment(verdict="synthetic")) == len(rows) > 10
    assert gallery.counts() == {"real": 1, "synthetic": len(rows), "off-class": 0, "skip": 0, "labeled": 0}
    assert open_gallery(world, run).counts() == gallery.counts()
    assert len(gallery.view(wanted)) == 0
    assert sorted(gallery.undo()) == sorted(rows.tolist())
    assert gallery.counts() == {"real": 1, "synthetic": 0, "off-class": 0, "skip": 0, "labeled": 0}
    assert (gallery.view(wanted) == rows).all()


def test_more_than_may_be_marked_at_once_are_refused(world: World, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = open_gallery(world, run)
    monkeypatch.setattr(stage, "MOST_AT_ONCE", 5)
    with pytest.raises(BadInput, match="At most 5 images"):
        gallery.mark_all(Filter(), len(gallery), Judgment(verdict="real"))
    assert not marks.path(run).exists()


def test_progress_counts_the_marks_among_the_first_suggested(world: World, run: Path) -> None:
    gallery = open_gallery(world, run)
    first = gallery.view(Filter())
    assert gallery.progress("suggested") == (0, stage.SUGGESTED)
    gallery.mark([gallery.key(int(row)) for row in (*first[:3], first[stage.SUGGESTED])], Judgment(verdict="skip"))
    assert gallery.progress("suggested") == (3, stage.SUGGESTED)


def test_an_outline_on_the_map_selects_the_dots_inside(world: World, run: Path) -> None:
    gallery = open_gallery(world, run)
    dots = gallery.map.dots_N2.astype(int)
    assert len(dots) == len(gallery) and dots.min() == 0 and dots.max() == region.SIDE - 1
    shards = Pool.open(world.pool).shards
    vectors = np.concatenate([ScoredPool.open(world.pool, run).embeddings(shard) for shard in shards]).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(vectors, rowvar=False))
    assert gallery.map.share == pytest.approx(values[-2:].sum() / values.sum(), abs=1e-3)
    found = gallery.view(Filter(order="pool", region="200,100 700,100 700,600 200,600"))
    inside = (dots[:, 0] >= 200) & (dots[:, 0] <= 700) & (dots[:, 1] >= 100) & (dots[:, 1] <= 600)
    assert found.tolist() == np.flatnonzero(inside).tolist() and 0 < len(found) < len(gallery)
    for wrong in ("1,2", "a,b c,d e,f", "1,2,3 4,5 6,7", "0,0 99999,0 0,5"):
        with pytest.raises(BadInput, match="region"):
            gallery.view(Filter(region=wrong))
