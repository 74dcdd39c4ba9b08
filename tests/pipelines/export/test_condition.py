from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines import export
from pipelines.errors import BadInput
from pipelines.run.scores import SCHEMA, ScoredPool
from tests.pipelines.export.exports import keys, settings


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
        ("prob_synthetic <", "syntax error"),
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


def test_the_schema_of_a_where_is_what_rows_have(pool: Path, run: Path) -> None:
    assert ScoredPool.open(pool, run).rows("00000").schema == SCHEMA
