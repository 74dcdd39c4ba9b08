import io
import re
import shutil
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import inspect
from pipelines.errors import BadInput, CorruptShard, Incompatible, MissingArtifact
from pipelines.inspect import InspectConfig
from pipelines.inspect.lookup import Inspection, Item, contact_sheet
from pipelines.pool.manifest import Pool
from pipelines.run import marks
from tests.conftest import World, save_untrained


@pytest.fixture(scope="module")
def pool(untrained: Path) -> Path:
    return untrained / "pool"


@pytest.fixture(scope="module")
def run(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(untrained / "run", tmp_path_factory.mktemp("lookup") / "run")


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def look(pool: Path, run: Path, *queries: str, **others: Any) -> list[Inspection]:
    return list(inspect.run(InspectConfig(queries=queries, pool=pool, run=run, **others)).inspections)


def all_embeddings(pool: Path, run: Path) -> tuple[list[str], np.ndarray]:
    shards = Pool.open(pool).shards
    keys = [key for shard in shards for key in pq.read_table(pool / f"{shard}.parquet")["key"].to_pylist()]
    vectors = np.concatenate([np.load(run / "embeddings" / f"{shard}.npy") for shard in shards]).astype(np.float64)
    return keys, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_neighbors_are_those_of_a_plain_search_and_the_image_is_not_its_own(pool: Path, run: Path) -> None:
    keys, vectors = all_embeddings(pool, run)
    for position in (0, 17, len(keys) - 1):
        (found,) = look(pool, run, keys[position], neighbors=5)
        distances = 1 - vectors @ vectors[position]
        distances[position] = np.inf
        nearest = distances.argsort()[:5]
        assert found.query.key == keys[position]
        assert [item.key for item in found.neighbors] == [keys[i] for i in nearest]
        assert [item.distance for item in found.neighbors] == pytest.approx(distances[nearest], abs=1e-5)


def test_scores_and_origin_come_with_every_image(pool: Path, run: Path) -> None:
    (found,) = look(pool, run, Pool.open(pool).rows("00001")["key"][3].as_py(), neighbors=8)
    for item in (found.query, *found.neighbors):
        assert item.key is not None and item.tar is not None
        with tarfile.open(item.tar) as tar:
            member = tar.getmember(f"{item.key}.jpg")
            assert (member.offset_data, member.size) == (item.offset, item.num_bytes)
        shard = item.key[:5]
        row = pq.read_table(pool / f"{shard}.parquet").filter(pa.compute.field("key") == item.key).to_pylist()[0]
        scores = pq.read_table(run / "scores" / f"{shard}.parquet").filter(pa.compute.field("key") == item.key)
        assert (item.source, item.member, item.declared) == (row["source"], row["member"], row["declared"])
        for name in ("prob_synthetic", "synthetic", "pseudo_label", "confidence"):
            assert getattr(item, name) == scores[name][0].as_py()


def test_a_persons_mark_wins_and_is_shown(pool: Path, own_run: Path, tmp_path: Path) -> None:
    row = Pool.open(pool).rows("00001").slice(3, 1).to_pylist()[0]
    (before,) = look(pool, own_run, row["key"])
    verdict: marks.Verdict = "real" if before.query.synthetic else "synthetic"
    marks.append(own_run, [marks.Mark(sha256=row["sha256"], key="another key", verdict=verdict)])
    (found,) = look(pool, own_run, row["key"], html=tmp_path / "sheet.html")
    assert (found.query.marked, found.query.verdict) == (verdict, verdict)
    assert found.query.prob_synthetic == before.query.prob_synthetic
    assert found.neighbors == before.neighbors
    assert f"A person marked it: {verdict}." in (tmp_path / "sheet.html").read_text()
    marks.undo(own_run)
    assert look(pool, own_run, row["key"]) == [before]


def test_disagreement_is_counted() -> None:
    item = Item(
        key="000000000", source="s", member="m", declared=None, prob_synthetic=0.9, synthetic=True, verdict="synthetic",
        pseudo_label="disc", confidence=1.0,
    )  # fmt: skip
    others = (item, replace(item, verdict="unsure"), replace(item, verdict="real", pseudo_label="cross"))
    assert Inspection(query=item, neighbors=others).other_verdict == 2
    assert Inspection(query=item, neighbors=others).other_label == 1


def test_a_copy_of_a_pool_image_from_outside_finds_it_first(
    world: World, pool: Path, run: Path, tmp_path: Path
) -> None:
    row = Pool.open(pool).rows("00000").to_pylist()[5]
    with tarfile.open(pool / "00000.tar") as tar:
        (tmp_path / "copy.jpg").write_bytes(tar.extractfile(f"{row['key']}.jpg").read())  # type: ignore[union-attr]
    (found,) = look(pool, run, str(tmp_path / "copy.jpg"), neighbors=3)
    assert found.query.key is None
    assert found.query.name == "copy.jpg"
    assert found.neighbors[0].key == row["key"]
    assert found.neighbors[0].distance == pytest.approx(0, abs=1e-4)
    assert found.query.prob_synthetic == pytest.approx(found.neighbors[0].prob_synthetic, abs=1e-4)
    assert found.query.pseudo_label == found.neighbors[0].pseudo_label


def test_a_folder_stands_for_its_images_in_order(world: World, pool: Path, run: Path, tmp_path: Path) -> None:
    for i, path in enumerate(sorted(world.test.glob("*/*.jpg"))[:3]):
        shutil.copy(path, tmp_path / f"{i}.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    key = Pool.open(pool).rows("00000")["key"][0].as_py()
    found = look(pool, run, str(tmp_path), key, neighbors=2)
    assert [inspection.query.name for inspection in found] == ["0.jpg", "1.jpg", "2.jpg", key]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("000009999", r"no image .* Keys of shard 00000 are among 00000\d{4} to 00000\d{4}"),
        ("000990001", r"has no shard 00099\..* from 00000 to 00001"),
        ("nowhere.jpg", r"neither a file nor a key"),
        ("12", r"neither a file nor a key"),
    ],
)
def test_an_unknown_query_is_told_what_there_is(pool: Path, run: Path, query: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        look(pool, run, query)


def test_what_is_no_image_is_refused(pool: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<!doctype html>")
    with pytest.raises(BadInput, match="not an image"):
        look(pool, run, str(tmp_path / "page.jpg"))
    (tmp_path / "page.jpg").unlink()
    with pytest.raises(BadInput, match="without an image"):
        look(pool, run, str(tmp_path))


def test_more_neighbors_than_images_are_all_of_them(pool: Path, own_run: Path) -> None:
    (own_run / "scores" / "00001.parquet").unlink()
    first, *others = Pool.open(pool).rows("00000")["key"].to_pylist()
    (found,) = look(pool, own_run, first, neighbors=1000)
    assert {item.key for item in found.neighbors} == set(others)


def test_an_image_that_is_not_scored_yet_says_so(pool: Path, own_run: Path) -> None:
    (own_run / "scores" / "00001.parquet").unlink()
    key = Pool.open(pool).rows("00001")["key"][0].as_py()
    with pytest.raises(MissingArtifact, match="run `curate score` first"):
        look(pool, own_run, key)


def test_embeddings_that_are_gone_or_of_another_length_are_a_corrupt_shard(pool: Path, own_run: Path) -> None:
    key = Pool.open(pool).rows("00000")["key"][0].as_py()
    shutil.rmtree(own_run / "index", ignore_errors=True)
    np.save(own_run / "embeddings" / "00001.npy", np.zeros((3, 128), np.float16))
    with pytest.raises(CorruptShard, match=r"00001\.npy"):
        look(pool, own_run, key)
    (own_run / "embeddings" / "00001.npy").unlink()
    with pytest.raises(CorruptShard, match=r"00001\.npy"):
        look(pool, own_run, key)


def test_an_outside_image_is_not_compared_across_trainings(world: World, pool: Path, own_run: Path) -> None:
    save_untrained(own_run, seed=1)
    image = next(world.test.glob("*/*.jpg"))
    with pytest.raises(Incompatible, match="run `curate score`"):
        look(pool, own_run, str(image))


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_beside_it(pool: Path, run: Path, tmp_path: Path) -> None:
    keys = Pool.open(pool).rows("00000")["key"].to_pylist()[:2]
    look(pool, run, *keys, neighbors=4, html=tmp_path / "sheet.html")
    text = (tmp_path / "sheet.html").read_text()
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 * 5
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert "script" not in [tag for tag, _ in page.tags]
    assert not re.findall(r"(?:src|href|action|data)=.?https?://|url\(", text)
    assert all(key in page.text for key in keys)


def test_hostile_names_are_text_in_the_page() -> None:
    hostile = "\"><script>alert(1)</script>{{ 7*7 }}'&<img src=x onerror=alert(2)>.jpg"
    item = Item(
        key=None, source=hostile, member=hostile, declared=hostile, prob_synthetic=0.5, synthetic=True,
        verdict="synthetic", pseudo_label=hostile, confidence=0.5, distance=0.1,
    )  # fmt: skip
    out = io.BytesIO()
    Image.new("RGB", (32, 32)).save(out, "PNG")
    picture = out.getvalue()
    page = Page(
        contact_sheet([Inspection(query=item, neighbors=(item,))], [[picture, picture]], neighbors_are_layout=False)
    )
    assert "script" not in [tag for tag, _ in page.tags]
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert hostile in page.text


def test_a_page_that_cannot_be_written_is_said_in_a_sentence(pool: Path, run: Path, tmp_path: Path) -> None:
    key = Pool.open(pool).rows("00000")["key"][0].as_py()
    with pytest.raises(BadInput, match="cannot be written"):
        look(pool, run, key, html=tmp_path / "no" / "such" / "folder.html")


def test_an_image_is_found_by_its_name_in_the_crawl(pool: Path, run: Path) -> None:
    rows = Pool.open(pool).rows("00000").to_pylist()
    for name in (rows[3]["member"], rows[3]["crawl_key"]):
        (found,) = look(pool, run, name)
        if name in {row["key"] for row in rows}:
            assert found.query.key == name  # a key of the pool comes first
        else:
            assert found.query.key == rows[3]["key"]
            assert found.query.crawl["crawl_key"] == rows[3]["crawl_key"]
    (rejected,) = pq.read_table(pool / "rejects/00000.parquet").slice(0, 1).to_pylist()
    with pytest.raises(BadInput, match=f"{rejected['member']}: was rejected: {rejected['reason'].replace('_', ' ')}"):
        look(pool, run, rejected["member"])
