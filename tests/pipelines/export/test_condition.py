import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines import export
from pipelines.errors import BadInput
from pipelines.pool.manifest import Pool
from pipelines.progress import Tick
from pipelines.run import outside
from pipelines.run.scores import SCHEMA, ScoredPool
from tests.pipelines.export.exports import keys, read_plainly, settings


@pytest.mark.parametrize(
    ("where", "mask"),
    [
        ("prob_synthetic < 0.1 and confidence > 0.5", pc.field("prob_synthetic") < 0.1),
        ("pseudo_label in ('disc', 'cross') -- only these", pc.field("pseudo_label").isin(["disc", "cross"])),
        ("declared = 'camera'", pc.field("declared") == "camera"),
        ("probs[2] > 0.5", pc.list_element(pc.field("probs"), 1) > 0.5),
    ],
)
def test_where_is_sql_over_pool_and_scores(
    pool: Path, run: Path, joined: pa.Table, tmp_path: Path, where: str, mask: pc.Expression
) -> None:
    export.run(settings(tmp_path / "out", pool, run, keep="all", where=where))
    wide = joined.set_column(joined.column_names.index("probs"), "probs", joined["probs"].cast(pa.list_(pa.float32())))
    if "confidence" in where:
        mask &= pc.field("confidence") > 0.5
    expected = wide.filter(mask)["key"].to_pylist()
    assert expected
    assert keys(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("prob_synthetik < 0.1", "did you mean 'prob_synthetic'?"),
        ("prob_synthetic <", "it ends too early"),
        ("width > 3 adn height > 3", "syntax error at or near \"adn\", after 'width > 3'"),
        ("verdict = real", "put it in single quotes: 'real'"),
        ("", "one condition"),
        ("confidence", "not a condition"),
        ("confidence < 'much'", "Could not convert"),
        ("true; select true", "syntax error"),
        ("true); COPY (SELECT 1) TO 'stolen.csv'; SELECT (true", "SELECT"),
        ("true) FROM read_text('/etc/passwd') WHERE (true", "one condition"),
        ("true) UNION SELECT (true", "one condition"),
        ("exists(SELECT * FROM read_csv('/etc/passwd'))", "subquery is not allowed"),
        ("(SELECT count(*) FROM glob('/*')) > 0", "subquery is not allowed"),
        ("getenv('HOME') = 'x'", "getenv() is not allowed"),
        ("current_setting('temp_directory') = 'x'", "current_setting() is not allowed"),
        ("random() < 0.5", "random() is not allowed"),
        ("current_date > DATE '2020-01-01'", "no column 'current_date'"),
        ("sum(confidence) > 1", "sum() is not allowed"),
        ("row_number() OVER () < 5", "window is not allowed"),
        ("confidence > $1", "parameter is not allowed"),
        ("not " * 5000 + "true", "depth"),
    ],
)
def test_a_wrong_or_hostile_where_is_refused_in_one_sentence(
    pool: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as refused:
        export.run(settings(tmp_path / "out", pool, run, where=where))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not list(tmp_path.iterdir())


def test_a_condition_that_no_image_meets_is_told_what_the_columns_hold(pool: Path, run: Path, tmp_path: Path) -> None:
    notes = list[str]()

    def note(tick: Tick) -> None:
        notes.extend([tick.note] if tick.note else [])

    where = "verdict = 'reel' and Width > 9999 and not synthetic"
    export.run(settings(tmp_path / "out", pool, run, where=where), note)
    (said,) = notes
    assert said.startswith("No image meets --where: verdict is ") and "width lies between 32 and 32" in said
    assert "real (" in said and "synthetic is " in said
    export.run(settings(tmp_path / "out", pool, run, keep="all", where="width = 32"), note)
    assert len(notes) == 1


def test_the_schema_of_a_where_is_what_rows_have(pool: Path, run: Path) -> None:
    assert ScoredPool.open(pool, run).rows("00000").schema == SCHEMA


def test_where_sees_scores_from_outside_and_the_export_carries_them(
    pool: Path, run: Path, joined: pa.Table, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    known = joined["key"].to_pylist()[::2]  # the others have no value, and meet no condition on it
    pq.write_table(pa.table({"key": known, "value": [float(i) for i in range(len(known))]}), tmp_path / "a.parquet")
    given = outside.read(Pool.open(pool), [f"Nice_1={tmp_path / 'a.parquet'}"])
    outside.store(tmp_path / "run", given, trained=False)
    for where, expected in (("Nice_1 > 5", known[6:]), ("nice_1 <= 2", known[:3]), ("NICE_1 > -1", known)):
        export.run(settings(tmp_path / "out", pool, tmp_path / "run", keep="all", where=where))
        assert keys(tmp_path / "out") == expected
    for sample in read_plainly(*sorted((tmp_path / "out").glob("*.tar"))):
        ours = json.loads(sample["json"])["curate"]
        assert ours["outside"] == {"Nice_1": known.index(ours["key"])}
    export.run(settings(tmp_path / "out", pool, tmp_path / "run", keep="all", where="Nice_1 is null"))
    assert keys(tmp_path / "out") == joined["key"].to_pylist()[1::2]
    with pytest.raises(BadInput, match="did you mean 'Nice_1'"):
        export.run(settings(tmp_path / "out", pool, tmp_path / "run", where="Nice_2 > 5"))


def test_scores_from_outside_do_not_disturb_the_other_choices(pool: Path, run: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["000000000"], "value": [1.0]}), tmp_path / "a.parquet")
    given = outside.read(Pool.open(pool), [f"nice={tmp_path / 'a.parquet'}"])
    for name, scores in (("plain", outside.NONE), ("with", given)):
        copy = tmp_path / f"{name} run"
        shutil.copytree(run, copy)
        (copy / "embeddings").mkdir()
        opened = ScoredPool(Pool.open(pool), copy)
        for shard in opened.shards:
            np.save(copy / "embeddings" / f"{shard}.npy", np.ones((opened.num_rows(shard), 4), dtype=np.float16))
        outside.store(copy, scores, trained=False)
        export.run(settings(tmp_path / name, pool, copy, drop_near_duplicates=True, per_class=20, max_distance=2.0))
    assert keys(tmp_path / "plain") == keys(tmp_path / "with") != []
