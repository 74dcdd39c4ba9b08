import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipelines import export, ingest, toy, verify
from pipelines.errors import BadInput, CorruptShard, Incompatible, MissingArtifact
from pipelines.export import ExportConfig
from pipelines.export.stage import Ranking, Reason
from pipelines.export.worker import describe, uid_of
from pipelines.images.formats import FORMATS
from pipelines.pool.manifest import Pool
from pipelines.run import marks
from pipelines.run.scores import SCHEMA, SCORE_SCHEMA, ScoredPool
from tests.conftest import World


@pytest.fixture(scope="module")
def crawl(world: World) -> Path:
    return world.root / "crawl"


@pytest.fixture(scope="module")
def pool(world: World) -> Path:
    return world.pool


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "run"
    write_scores(Pool.open(pool), path)
    return path


def write_scores(pool: Pool, run: Path) -> None:
    """Scores as `curate score` would leave them, drawn at random; confidences are rounded, so that there are ties."""
    rng = np.random.default_rng(6)
    (run / "scores").mkdir(parents=True)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text(json.dumps({"classes": toy.CLASSES, "threshold": 0.5, "pool": "pool"}))
    for shard in pool.shards:
        keys = pool.rows(shard)["key"].to_pylist()
        probs = rng.dirichlet(np.ones(len(toy.CLASSES)), len(keys)).round(1).astype(np.float16)
        prob_synthetic = rng.random(len(keys)).astype(np.float32)
        columns: dict[str, Any] = {
            "key": keys,
            "prob_synthetic": prob_synthetic,
            "synthetic": prob_synthetic >= 0.5,
            "verdict": np.where(prob_synthetic >= 0.5, "synthetic", "real"),
            "pseudo_label": [toy.CLASSES[i] for i in probs.argmax(1)],
            "confidence": probs.max(1).astype(np.float32),
            "probs": list(probs),
        }
        pq.write_table(pa.table(columns, schema=SCORE_SCHEMA), run / "scores" / f"{shard}.parquet")


@pytest.fixture(scope="module")
def joined(pool: Path, run: Path) -> pa.Table:
    shards = Pool.open(pool).shards
    scores = pa.concat_tables(pq.read_table(run / "scores" / f"{shard}.parquet") for shard in shards)
    rows = pa.concat_tables(pq.read_table(pool / f"{shard}.parquet") for shard in shards)
    for name in scores.column_names[1:]:
        rows = rows.append_column(name, scores[name])
    return rows


def settings(out: Path, pool: Path, run: Path, **others: Any) -> ExportConfig:
    return ExportConfig(out=out, pool=pool, run=run, **({"jobs": 1} | others))


def keys(out: Path, table: str = "kept") -> list[str]:
    return pq.read_table(out / f"{table}.parquet")["key"].to_pylist()


def read_plainly(*shards: Path, decode: bool = False) -> list[dict[str, Any]]:
    """What plain webdataset reads, on request decoded; it leaves files for the garbage collector, with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)
        samples = list(found.decode() if decode else found)
        gc.collect()
    return samples


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_kept_images_open_in_plain_webdataset_with_the_crawls_bytes(
    crawl: Path, pool: Path, run: Path, joined: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "clean"
    summary = export.run(settings(out, pool, run, shard_size=300))
    originals: dict[str, dict[str, bytes]] = {}
    for path in crawl.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                originals.setdefault(stem, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    rows = {row["key"]: row for row in joined.to_pylist()}

    samples = read_plainly(*sorted(out.glob("*.tar")))
    assert len(samples) == summary.kept == sum(not row["synthetic"] for row in rows.values())
    assert [sample["__key__"] for sample in samples] == keys(out)
    for sample in samples:
        row = rows[sample["__key__"]]
        original = originals[Path(row["member"]).stem]
        assert sample["jpg"] == original["jpg"]
        assert sample["txt"] == original["txt"]
        assert toy.CLASSES[int(sample["cls"])] == row["pseudo_label"]
        metadata = json.loads(sample["json"])
        ours = metadata.pop("curate")
        assert metadata == json.loads(original["json"])
        assert ours["prob_synthetic"] == pytest.approx(row["prob_synthetic"], abs=1e-6)
        assert (ours["key"], ours["member"], ours["synthetic"]) == (row["key"], row["member"], False)


def test_shards_are_cut_at_the_size_asked_for(pool: Path, run: Path, tmp_path: Path) -> None:
    summary = export.run(settings(tmp_path / "out", pool, run, keep="all", shard_size=400))
    counts = [json.loads(path.read_text())["count"] for path in sorted((tmp_path / "out").glob("*_stats.json"))]
    assert counts == [400, 400, summary.kept - 800]
    assert summary.shards == 3
    assert pq.read_table(tmp_path / "out" / "kept.parquet")["shard"].to_pylist()[399:401] == ["00000", "00001"]


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


def test_uids_are_a_sorted_datacomp_list(pool: Path, run: Path, tmp_path: Path) -> None:
    export.run(settings(tmp_path / "out", pool, run))
    uids = np.load(tmp_path / "out" / "uids.npy")
    assert uids.dtype == np.dtype([("f0", "<u8"), ("f1", "<u8")])
    listed = pq.read_table(tmp_path / "out" / "kept.parquet")
    assert [f"{high:016x}{low:016x}" for high, low in uids] == sorted(listed["uid"].to_pylist())
    assert listed["uid"].to_pylist() == [digest[:32] for digest in listed["sha256"].to_pylist()]


def test_a_uid_is_the_crawls_own_where_it_has_one() -> None:
    own = "0123456789abcdef0123456789abcdef"
    assert uid_of(json.dumps({"uid": own}).encode(), "f" * 64) == own
    for metadata in (None, b"{}", b'{"uid": 7}', b'{"uid": "zz"}', b"[1]", b"\xff"):
        assert uid_of(metadata, "f" * 64) == "f" * 32


def test_the_crawls_metadata_are_not_lost_whatever_they_are() -> None:
    row = {
        "key": "000000001", "prob_synthetic": 0.25, "synthetic": False, "pseudo_label": "disc", "confidence": 0.5,
        "marked": None, "declared": None, "declared_by": None, "source": "crawl", "member": "a.jpg",
    }  # fmt: skip

    def others(metadata: bytes | None) -> dict[str, Any]:
        values = json.loads(describe(metadata, row))
        assert values.pop("curate") == row
        return values

    assert others(None) == {}
    assert others(b'{"a": 1}') == {"a": 1}
    assert others(b"[1, 2]") == {"crawl": [1, 2]}
    assert others(b"not json \xff") == {"crawl": "not json \\xff"}
    assert others(b'{"curate": {"key": "old"}, "a": 1}') == {"crawl": {"curate": {"key": "old"}, "a": 1}}
    assert others(b"[" * 100_000) == {"crawl": "[" * 100_000}
    assert others(b'{"a": NaN, "b": [-Infinity, 1e999, 0.5]}') == {"a": None, "b": [None, None, 0.5]}
    nested = b"[" * 900 + b"NaN" + b"]" * 900
    assert b"NaN" not in describe(b'{"a": %s}' % nested, row)
    for depth in range(900, 1100):  # somewhere it can be read and is too deep to be written
        assert json.loads(describe(b"[" * depth + b"]" * depth, row))["curate"] == row


def export_one(root: Path, **sidecars: bytes) -> Path:
    """Export a crawl of one image with some files beside it; returns the shard."""
    picture = next(iter(toy._pictures(0, "x", 1, synthetic=False))).data
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as tar:
        for suffix, content in {"jpg": picture, **sidecars}.items():
            member = tarfile.TarInfo(f"x.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    ingest.run(ingest.IngestConfig(sources=(str(root / "a.tar"),), pool=root / "pool", jobs=1))
    write_scores(Pool.open(root / "pool"), root / "run")
    export.run(settings(root / "out", root / "pool", root / "run", keep="all"))
    return root / "out" / "00000.tar"


def test_sidecars_of_every_kind_are_carried_and_our_class_replaces_none(tmp_path: Path) -> None:
    (sample,) = read_plainly(export_one(tmp_path / "x", cls=b"7", json=b"[3]", caption=b"hi"))
    assert sample["jpg"] == next(iter(toy._pictures(0, "x", 1, synthetic=False))).data
    assert sample["cls"].decode() in "01234"
    assert sample["crawl.cls"] == b"7"
    assert sample["caption"] == b"hi"
    assert json.loads(sample["json"])["crawl"] == [3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_captions_are_read_in_the_encoding_that_they_begin_with(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""  # the others write one by themselves
    shard = export_one(tmp_path / "x", txt=f"{mark}un café, 图".encode(encoding))
    (sample,) = read_plainly(shard, decode=True)
    assert sample["txt"] == "un café, 图"


def test_the_readme_reads_every_format(tmp_path: Path) -> None:
    """By the lines that stand there, but for the name of the shards."""
    (tmp_path / "crawl").mkdir()
    rng = np.random.default_rng(0)
    for name, pillow in FORMATS.items():
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "crawl" / f"x.{name}", format=pillow)
    ingest.run(ingest.IngestConfig(sources=(str(tmp_path / "crawl"),), pool=tmp_path / "pool", jobs=1))
    write_scores(Pool.open(tmp_path / "pool"), tmp_path / "run")
    export.run(settings(tmp_path / "clean", tmp_path / "pool", tmp_path / "run", keep="all"))
    text = (Path(__file__).parents[3] / "README.md").read_text()
    lines = [line.strip() for line in text[text.index("    import webdataset as wds") :].split("\n\n")[0].splitlines()]
    code = "\n".join(lines).replace("clean/{00000..00029}.tar", f"{tmp_path}/clean/00000.tar")
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        exec(code, names)
        read = list(names.pop("dataset"))
        gc.collect()
    assert len(read) == len(FORMATS)
    assert all(image.size == (32, 32) and label in range(5) for image, label in read)


@pytest.mark.parametrize("label", [b"dog", b"", b"7\xff"])
def test_text_that_is_not_utf8_and_labels_that_are_no_numbers_stay_in_the_pool_and_open_in_plain_webdataset(
    tmp_path: Path, label: bytes
) -> None:
    crawled = {"txt": b"un caf\xe9", "json": b'{"caption": "un caf\xe9"}', "cls": label}
    shard = export_one(tmp_path / "x", **crawled)
    (kept,) = read_plainly(tmp_path / "x" / "pool" / "00000.tar")
    assert {suffix: kept[suffix] for suffix in crawled} == crawled
    (sample,) = read_plainly(shard, decode=True)
    assert sample["txt"] == "un caf\\xe9"
    assert sample["json"]["crawl"] == '{"caption": "un caf\\xe9"}'
    assert sample["cls"] in range(5)
    assert sample["crawl.cls.txt"] == label.decode("utf-8", "backslashreplace")
    assert not verify.run(verify.VerifyConfig(pool=tmp_path / "x" / "pool", run=tmp_path / "none")).problems


def test_the_same_export_is_the_same_bytes_and_another_replaces_it(pool: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.run(settings(out, pool, run, shard_size=200))
    first = files(out)
    export.run(settings(out, pool, run, shard_size=200))
    assert files(out) == first
    export.run(settings(out, pool, run, keep="synthetic"))
    assert "00001.tar" not in files(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("file", ["notes.txt", "00000.jpg"])
def test_a_folder_with_foreign_files_is_refused_and_left_alone(
    pool: Path, run: Path, tmp_path: Path, file: str
) -> None:
    export.run(settings(tmp_path, pool, run)) if file == "00000.jpg" else None
    (tmp_path / file).write_text("mine")
    before = files(tmp_path)
    with pytest.raises(BadInput, match=file):
        export.run(settings(tmp_path, pool, run))
    assert files(tmp_path) == before


def test_a_pool_or_a_file_is_no_place_to_export_to(pool: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no export wrote"):
        export.run(settings(pool, pool, run))
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is a file"):
        export.run(settings(tmp_path / "file", pool, run))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "00000.tar").write_bytes(b"a crawl of somebody's")
    with pytest.raises(BadInput, match="not an export"):
        export.run(settings(tmp_path / "folder", pool, run))


def test_a_shard_without_scores_and_scores_of_other_images_are_refused(pool: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    write_scores(Pool.open(pool), other)
    (other / "scores" / "00001.parquet").rename(tmp_path / "aside")
    with pytest.raises(MissingArtifact, match="run `curate score` first"):
        export.run(settings(tmp_path / "out", pool, other))
    (other / "scores" / "00001.parquet").write_bytes((other / "scores" / "00000.parquet").read_bytes())
    with pytest.raises(Incompatible, match="other images"):
        export.run(settings(tmp_path / "out", pool, other))
    assert not (tmp_path / "out").exists()


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


def test_a_cut_shard_of_the_pool_is_said_to_be_cut(pool: Path, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pool"
    copy.mkdir()
    for path in pool.glob("0*"):
        (copy / path.name).write_bytes(path.read_bytes())
    with (copy / "00000.tar").open("r+b") as tar:
        tar.truncate(100_000)
    with pytest.raises(CorruptShard, match=r"00000\.tar"):
        export.run(settings(tmp_path / "out", copy, run))
    assert not (tmp_path / "out").exists()


def test_killed_and_run_again_it_is_the_uninterrupted_export(pool: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.run(settings(out, pool, run, shard_size=50))
    whole = files(out)
    program = (
        "import sys; from pathlib import Path; from pipelines import export\n"
        "c = export.ExportConfig(out=sys.argv[1], pool=sys.argv[2], run=sys.argv[3], shard_size=50, jobs=1)\n"
        "print('go', flush=True)\n"
        "while True: export.run(c)\n"
    )
    for pause_s in (0.02, 0.11, 0.23):
        command = [sys.executable, "-c", program, out, pool, run]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(pause_s)
            os.kill(process.pid, signal.SIGKILL)
        if out.exists():
            assert files(out) == whole
        export.run(settings(out, pool, run, shard_size=50))
        assert files(out) == whole
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_killed_between_its_last_renames_leaves_the_earlier_export_to_the_next(
    pool: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export.run(settings(out, pool, run))
    whole = files(out)
    out.rename(tmp_path / ".out.before")
    with pytest.raises(BadInput):
        export.run(settings(out, pool, run, where="nonsense"))
    assert files(out) == whole


def test_a_tick_comes_with_every_shard(pool: Path, run: Path, tmp_path: Path) -> None:
    seen = []
    summary = export.run(settings(tmp_path / "out", pool, run, shard_size=100), on_tick=seen.append)
    assert [tick.figures["kept"] for tick in seen] == [*range(100, summary.kept, 100), summary.kept]
    assert [tick.done for tick in seen] == sorted(tick.done for tick in seen)
    assert seen[-1].done == seen[-1].total == summary.pool


def test_the_bytes_do_not_depend_on_the_number_of_processes(pool: Path, run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    choice = {"shard_size": 130, "per_class": 90, "min_confidence": 0.3}
    export.run(settings(one, pool, run, jobs=1, **choice))
    export.run(settings(two, pool, run, jobs=2, **choice))
    assert {**files(one), "run.json": b""} == {**files(two), "run.json": b""}


def test_the_schema_of_a_where_is_what_rows_have(pool: Path, run: Path) -> None:
    assert ScoredPool.open(pool, run).rows("00000").schema == SCHEMA


def test_a_persons_marks_win_over_the_scores(pool: Path, run: Path, joined: pa.Table, tmp_path: Path) -> None:
    """Called synthetic but marked real, labeled and in doubt: kept with that label. Called real but not: dropped."""
    rows = joined.to_pylist()
    fake = next(row for row in rows if row["synthetic"] and row["confidence"] < 0.8)
    real = next(row for row in rows if not row["synthetic"] and row["confidence"] >= 0.8)
    skipped = next(row for row in rows if not row["synthetic"] and row["confidence"] >= 0.8 and row is not real)
    own_run = tmp_path / "run"
    shutil.copytree(run, own_run)
    label = next(name for name in toy.CLASSES if name != fake["pseudo_label"])
    said: list[tuple[dict[str, Any], marks.Verdict, str | None]] = [
        (fake, "real", label),
        (real, "synthetic", None),
        (skipped, "skip", None),
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
    assert skipped["key"] in kept
    (sample,) = (one for one in read_plainly(*sorted(out.glob("*.tar"))) if one["__key__"] == fake["key"])
    assert json.loads(sample["json"])["curate"]["marked"] == "real"

    export.run(settings(out, pool, own_run, keep="all", where="marked = 'synthetic'"))
    assert keys(out) == [real["key"]]
