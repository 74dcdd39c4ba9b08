"""Marks come back into training: whatever key an image has by then, and never half of them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipelines import ingest, train
from pipelines.errors import BadInput, Incompatible
from pipelines.images.views import Decoder
from pipelines.pool.labeled import read
from pipelines.pool.manifest import Pool
from pipelines.run import marks
from pipelines.run.marks import Mark
from pipelines.train import TrainConfig, marked
from tests.conftest import World
from tests.pipelines.train import runs

DECODER = Decoder(32, 32)


@pytest.fixture(scope="module")
def rows(world: World) -> list[dict[str, Any]]:
    return pa.concat_tables(Pool.open(world.pool).tables()).to_pylist()


def said(row: dict[str, Any], verdict: marks.Verdict, label: str | None = None) -> Mark:
    return Mark(sha256=row["sha256"], key=row["key"], verdict=verdict, label=label)


def join(world: World, run: Path, pool: Path | None = None) -> marked.Training:
    return marked.join(Pool.open(pool or world.pool), read(world.seed, DECODER), run, DECODER)


def test_marks_become_labeled_images_and_marked_rows(world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plain = join(world, tmp_path)
    assert plain.marked is None and plain.fingerprint is None and len(plain.rows) == len(rows)
    marks.append(tmp_path, [said(rows[3], "real", "disc"), said(rows[500], "real", "cross"), said(rows[7], "skip")])
    marks.append(tmp_path, [said(rows[i], "real") for i in (0, 400)] + [said(rows[i], "synthetic") for i in (4, 5, 6)])
    marks.append(tmp_path, [said(rows[8], "off-class")])
    found = join(world, tmp_path)
    assert found.counts == {"labeled": 2, "real": 2, "synthetic": 3, "off_class": 1}
    assert found.marked is not None and found.marked.num_labeled == 42
    assert len(found.rows) == len(rows) - 2
    keys = found.rows.key.tolist()
    assert [keys[i] for i in found.marked.real] == [rows[i]["key"] for i in (0, 8, 400)]
    assert found.marked.off_class is not None
    assert [keys[i] for i in found.marked.off_class] == [rows[8]["key"]]
    assert [keys[i] for i in found.marked.synthetic] == [rows[i]["key"] for i in (4, 5, 6)]
    assert not {rows[3]["key"], rows[500]["key"]} & set(keys)

    classes = found.examples.classes
    assert [classes[i] for i in found.examples.labels[-2:].tolist()] == ["disc", "cross"]
    for place, row in ((-2, rows[3]), (-1, rows[500])):
        data = Pool.open(world.pool).tar(row["shard"]).read_bytes()[row["offset"] :][: row["num_bytes"]]
        assert torch.equal(found.examples.views.images[place], torch.from_numpy(DECODER.decode("", data)[0]))


def test_marks_outlive_an_ingest_that_gives_other_keys(
    world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    last = sorted((world.root / "crawl").glob("*.tar"))[-1]
    ingest.run(ingest.IngestConfig(sources=(str(last),), pool=tmp_path / "pool", jobs=1))
    there = {row["sha256"]: row["key"] for row in Pool.open(tmp_path / "pool").rows("00000").to_pylist()}
    fakes = [row for row in rows if row["sha256"] in there][:2]
    assert all(there[row["sha256"]] != row["key"] for row in fakes)
    marks.append(tmp_path / "pool", [said(row, "synthetic") for row in [*fakes, rows[0]]])  # the last is not there
    found = join(world, tmp_path / "pool", tmp_path / "pool")
    assert found.marked is not None
    keys = found.rows.key.tolist()
    assert [keys[i] for i in found.marked.synthetic] == [there[row["sha256"]] for row in fakes]


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("zebra", r"labeled 'zebra', which is not a class of the labeled set \(cross, disc"),
        (None, "marked synthetic, but"),
    ],
)
def test_marks_that_contradict_the_labeled_set_are_one_sentence(
    world: World, rows: list[dict[str, Any]], tmp_path: Path, label: str | None, sentence: str
) -> None:
    if label:
        mark = said(rows[0], "real", label)
    else:
        digest = min(read(world.seed, DECODER).digests)
        mark = Mark(sha256=digest, key="000000000", verdict="synthetic")
    marks.append(tmp_path, [mark])
    with pytest.raises(BadInput, match=sentence):
        join(world, tmp_path)


def test_training_with_marks_resumes_with_the_same_marks_alone(
    world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    def config(**changes: Any) -> TrainConfig:
        return runs.config(world, tmp_path, {"recipe": {"num_steps": 12}, "machine": {"checkpoint_every": 4}}, changes)

    marks.append(tmp_path, [said(rows[1], "real", "disc"), said(rows[2], "real"), said(rows[3], "synthetic")])

    class Stop(Exception):
        pass

    def stop(tick: Any) -> None:
        if tick.unit == "steps" and tick.done == 9:
            raise Stop

    with pytest.raises(Stop):
        train.run(config(), stop)
    marks.append(tmp_path, [said(rows[8], "skip")])  # says nothing to training
    summary = train.run(config())
    assert summary.resumed_at == 8
    assert summary.marked == {"labeled": 1, "real": 1, "synthetic": 1}
    assert (summary.num_labeled, summary.labeled_in_pool) == (41, 1)

    marks.append(tmp_path, [said(rows[9], "synthetic")])
    with pytest.raises(Incompatible, match=r"other marks.*--no-resume"):
        train.run(config())
    assert train.run(config(resume=False, recipe={"num_steps": 1})).marked["synthetic"] == 2
