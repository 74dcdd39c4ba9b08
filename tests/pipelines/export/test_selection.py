import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import export, toy
from pipelines.errors import Incompatible
from pipelines.export.selection import Ranking, Reason
from pipelines.pool.manifest import Pool
from pipelines.run import marks
from pipelines.run.scores import SCORE_SCHEMA
from tests.pipelines.export.exports import keys, read_plainly, settings, write_scores


def test_every_image_is_kept_or_has_its_reason(pool: Path, run: Path, joined: pa.Table, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.run(settings(out, pool, run, min_confidence=0.4, where="key not like '%3'", per_class=20))
    dropped = dict(zip(keys(out, "dropped"), pq.read_table(out / "dropped.parquet")["reason"].to_pylist(), strict=True))
    kept = set(keys(out))
    assert not kept & set(dropped)
    assert kept | set(dropped) == set(joined["key"].to_pylist())
    for row in joined.to_pylist():
        if row["synthetic"]:
            expected: Reason | None = Reason.SYNTHETIC
        elif row["confidence"] < np.float32(0.4):
            expected = Reason.LOW_CONFIDENCE
        elif row["key"].endswith("3"):
            expected = Reason.WHERE
        else:
            expected = None
        assert dropped.get(row["key"]) in ({expected} if expected else {None, Reason.OVER_PER_CLASS})


def test_per_class_keeps_the_most_confident_and_breaks_ties_by_key(
    pool: Path, run: Path, joined: pa.Table, tmp_path: Path
) -> None:
    summary = export.run(settings(tmp_path / "out", pool, run, keep="all", per_class=7))
    expected = []
    for name in toy.CLASSES:
        mine = [row for row in joined.to_pylist() if row["pseudo_label"] == name]
        expected += sorted((-row["confidence"], row["key"]) for row in mine)[:7]
    assert keys(tmp_path / "out") == sorted(key for _, key in expected)
    assert summary.per_class == dict.fromkeys(toy.CLASSES, 7)


def test_a_ranking_does_not_depend_on_the_order_of_the_shards() -> None:
    rows = [("a", 0.5, "2"), ("a", 0.5, "1"), ("a", 0.9, "3"), ("b", 0.1, "4")]
    for order in (rows, rows[::-1]):
        ranking = Ranking(2)
        for label, confidence, key in order:
            ranking.add([label], [confidence], [key])
        assert [row[2] for row in rows if ranking.keeps(*row)] == ["1", "3", "4"]


def test_without_a_detector_all_is_the_only_choice(pool: Path, tmp_path: Path) -> None:
    write_scores(Pool.open(pool), tmp_path / "run")
    for path in (tmp_path / "run" / "scores").iterdir():
        scores = pq.read_table(path)
        for name in ("prob_synthetic", "synthetic"):
            nulls = pa.nulls(scores.num_rows, scores.schema.field(name).type)
            scores = scores.set_column(scores.column_names.index(name), SCORE_SCHEMA.field(name), nulls)
        pq.write_table(scores, path)
    with pytest.raises(Incompatible, match="--keep all"):
        export.run(settings(tmp_path / "out", pool, tmp_path / "run"))
    summary = export.run(settings(tmp_path / "out", pool, tmp_path / "run", keep="all"))
    assert summary.kept == summary.pool


def test_a_persons_marks_win_over_the_scores(pool: Path, run: Path, joined: pa.Table, tmp_path: Path) -> None:
    """Called synthetic but marked real, labeled and in doubt: kept with that label. Called real but not: dropped."""
    rows = joined.to_pylist()
    fake = next(row for row in rows if row["synthetic"] and row["confidence"] < 0.8)
    real = next(row for row in rows if not row["synthetic"] and row["confidence"] >= 0.8)
    skipped = next(row for row in rows if not row["synthetic"] and row["confidence"] >= 0.8 and row is not real)
    none = next(row for row in rows if not row["synthetic"] and row not in (real, skipped))
    own_run = tmp_path / "run"
    shutil.copytree(run, own_run)
    label = next(name for name in toy.CLASSES if name != fake["pseudo_label"])
    said: list[tuple[dict[str, Any], marks.Verdict, str | None]] = [
        (fake, "real", label),
        (real, "synthetic", None),
        (skipped, "skip", None),
        (none, "off-class", None),
    ]
    marks.append(
        own_run,
        [marks.Mark(sha256=row["sha256"], key=row["key"], verdict=verdict, label=name) for row, verdict, name in said],
    )
    out = tmp_path / "clean"
    export.run(settings(out, pool, own_run, min_confidence=0.8))
    kept = {row["key"]: row for row in pq.read_table(out / "kept.parquet").to_pylist()}
    assert kept[fake["key"]]["pseudo_label"] == label
    assert kept[fake["key"]]["prob_synthetic"] == pytest.approx(fake["prob_synthetic"])  # what the model says
    dropped = {row["key"]: row["reason"] for row in pq.read_table(out / "dropped.parquet").to_pylist()}
    assert dropped[real["key"]] == "synthetic"
    assert dropped[none["key"]] == "low_confidence"
    assert skipped["key"] in kept
    (sample,) = (one for one in read_plainly(*sorted(out.glob("*.tar"))) if one["__key__"] == fake["key"])
    assert json.loads(sample["json"])["curate"]["marked"] == "real"

    export.run(settings(out, pool, own_run, keep="all", where="marked = 'synthetic'"))
    assert keys(out) == [real["key"]]

    export.run(settings(out, pool, own_run))
    (sample,) = (one for one in read_plainly(*sorted(out.glob("*.tar"))) if one["__key__"] == none["key"])
    assert sample["cls"] == b"-1" and json.loads(sample["json"])["curate"]["marked"] == "off-class"
