"""Only real images, without classes, from the crawl to the export, as a person types it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.pool.manifest import Pool
from pipelines.review.filters import Filter
from pipelines.review.gallery import Gallery
from pipelines.run import marks
from pipelines.run.marks import Mark
from pipelines.run.scores import ScoredPool
from tests.conftest import World
from tests.curate.test_review_cli import Client, review
from tests.pipelines.export.exports import read_plainly
from tests.warm import answer, curate

pytestmark = pytest.mark.slow

RECIPE = """
[network]
backbone = "small"
[recipe]
num_steps = 24
batch_size = 8
unlabeled_ratio = 2
[machine]
device = "cpu"
log_every = 4
"""


def run(*arguments: str, cwd: Path) -> dict[str, Any]:
    return answer(curate(*arguments, "--json", cwd=cwd))


@pytest.fixture(scope="module")
def home(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crawl, ingested, trained on a flat folder of photographs, and scored."""
    home = tmp_path_factory.mktemp("without-classes")
    (home / "photos").mkdir()
    for path in sorted(world.seed.glob("*/*.jpg")):
        shutil.copy(path, home / "photos" / f"{path.parent.name}-{path.name}")
    (home / "photos" / ".DS_Store").write_bytes(b"\0")
    (home / "photos" / "._disc-0.jpg").write_bytes(b"\0")
    (home / "small.toml").write_text(RECIPE)
    run("ingest", str(world.root / "crawl"), "--jobs", "1", cwd=home)
    done = curate(
        "train", "--labeled", "photos", "--config", "small.toml", "--truth", str(world.truth), "--no-resume", cwd=home
    )
    assert done.returncode == 0, done.stderr
    (home / "train.out").write_text(done.stdout)
    (home / "train.err").write_text(done.stderr)
    run("score", "--device", "cpu", cwd=home)
    return home


def test_training_says_in_a_sentence_what_it_does_and_trains_the_detector_from_its_first_step(home: Path) -> None:
    said = "photos has no class folders: training the detector alone, without pseudo-labels."
    assert (home / "train.err").read_text().count(said) == 1
    assert "none: the detector alone was trained" in (home / "train.out").read_text()
    lines = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"detector_sup", "detector_cons", "queue_score", "dummy_share"} <= set(lines[0])
    of_the_classifier = ("sup", "self", "conf", "pseudo")
    assert not any(name.startswith(of_the_classifier) for line in lines for name in line)
    assert lines[-1]["detector_auroc"] > 0.5
    summary = json.loads((home / "run" / "run.json").read_text())["summary"]
    assert summary["classes"] == [] and summary["estimated_share"] is not None


def test_the_model_has_no_classes_and_no_program_for_them(home: Path) -> None:
    config = json.loads((home / "run" / "model" / "config.json").read_text())
    assert (config["classes"], config["has_detector"], config["embedding"]) == ([], True, "layout")
    assert not (home / "run" / "model" / "classifier.pt2").exists()
    readme = (home / "run" / "model" / "README.md").read_text()
    assert "there is no classifier" in readme and "classifier.pt2" not in readme
    assert (home / "run" / "model" / "detector.pt2").exists() and "detector.pt2" in readme


def test_scores_have_verdicts_and_no_labels(home: Path, world: World) -> None:
    scores = pa.concat_tables(pq.read_table(path) for path in sorted((home / "run" / "scores").glob("*.parquet")))
    nulls = {name: scores[name].null_count for name in scores.column_names}
    assert nulls == dict.fromkeys(nulls, 0) | dict.fromkeys(
        ("pseudo_label", "confidence", "probs", "raw_confidence", "typicality"), len(scores)
    )
    done = curate("score", "--device", "cpu", "--truth", str(world.truth), cwd=home)
    assert done.returncode == 0 and "auroc" in done.stdout
    assert "no classes" in done.stdout and "Pseudo-labels" not in done.stdout and "accuracy" not in done.stdout


def test_the_report_leaves_classes_out(home: Path) -> None:
    summary = run("report", "--map", "pca", "--device", "cpu", cwd=home)
    page = Path(home / summary["out"]).read_text()
    assert "No classes." in page and 'id="scores"' in page and "map-verdict-title" in page
    for absent in ('id="classes"', "mean confidence", "By class", "Each class", "None"):
        assert absent not in page, absent
    assert "similar colors in similar places" in page
    scored = ScoredPool.open(home / "pool", home / "run")
    called = pa.concat_tables(scored.rows(shard, ["synthetic"]) for shard in scored.shards)["synthetic"].to_pylist()
    assert summary["synthetic_share"] == pytest.approx(np.mean(called)) and 0 < np.mean(called) < 1


def test_neighbors_are_said_to_share_colors_alone(home: Path) -> None:
    key = str(Pool.open(home / "pool").rows("00000")["key"][0])
    photo = str(next((home / "photos").glob("d*.jpg")))
    done = curate("inspect", key, photo, "-k", "4", "--html", "sheet.html", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "no network has learned what the images show" in done.stderr
    assert "label" not in done.stdout and "None" not in done.stdout and "of 4 neighbors agree" in done.stdout
    sheet = (home / "sheet.html").read_text()
    assert "No network has learned" in sheet and "Labeled" not in sheet and "None" not in sheet
    found = run("inspect", key, "-k", "4", cwd=home)
    assert found["neighbors_are_layout"] and found["inspections"][0]["other_label"] is None
    done = curate("inspect", "--disagreement", "--top", "3", cwd=home)
    assert done.returncode == 0 and "have another verdict\n" in done.stdout and "label" not in done.stdout


def test_near_duplicates_are_grouped_and_dropped(home: Path, tmp_path: Path) -> None:
    found = run("inspect", "--near-duplicates", cwd=home)
    assert found["confirmed"]
    flags = ("--out", str(tmp_path / "clean"), "--keep", "all", "--drop-near-duplicates")
    summary = run("export", *flags, cwd=home)
    assert summary["dropped"].get("near_duplicate", 0) == found["num_redundant"]


def test_the_page_of_review_has_no_label_keys(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "pool").symlink_to(home / "pool")
    with review(tmp_path) as server:
        client = Client(server)

        def ask(path: str, method: str = "GET", body: Any = None) -> tuple[int, bytes]:
            headers = {"cookie": client.cookie, "origin": f"http://{client.host}", "content_type": "application/json"}
            status, _, content = client.ask(path, method, body, **headers)
            return status, content

        page = ask("/")[1].decode()
        assert 'data-action="real"' in page and "Nearest to the threshold" in page
        absent = (
            'data-action="label"',
            'name="label"',
            "Neighbors disagree: label",
            "with a class from the list",
            '<ol id="classes"',
        )
        assert [text for text in absent if text in page] == []
        assert "They have similar colors in similar places" in page
        rows = np.frombuffer(ask("/api/view")[1], dtype="<i4")
        assert sorted(rows.tolist()) == list(range(Pool.open(home / "pool").num_images))
        (item,) = json.loads(ask(f"/api/rows?rows={rows[0]}")[1])
        assert item["pseudo_label"] is None and item["confidence"] is None and item["prob_synthetic"] is not None
        detail = json.loads(ask(f"/api/image/{item['key']}")[1])
        assert detail["probs"] == [] and len(detail["neighbors"]) == 12
        marked = {"keys": [item["key"]], "verdict": "real"}
        status, said = ask("/api/marks", "POST", marked | {"label": "cat"})
        assert status == 400 and "no class: the run has none" in json.loads(said)["error"]
        status, said = ask("/api/marks", "POST", marked)
        assert status == 200 and json.loads(said)["counts"]["real"] == 1
        assert len(ask("/api/view?marked=real")[1]) == 4 and ask("/api/view?marked=real&label=cat")[1] == b""


def test_images_are_suggested_from_all_clusters(home: Path) -> None:
    gallery = Gallery(ScoredPool.open(home / "pool", home / "run"))
    doubt = 1 - abs(gallery.prob - gallery.thresholds.synthetic_from)
    by_doubt = np.argsort(-doubt, kind="stable")
    suggested = gallery.view(Filter())
    assert sorted(suggested.tolist()) == sorted(by_doubt.tolist())
    assert suggested[:50].tolist() != by_doubt[:50].tolist()  # similar images take turns


def test_an_export_has_no_classes_and_is_read_back(home: Path) -> None:
    summary = run("export", "--out", "clean", "--where", "prob_synthetic < 0.9 and width >= 16", cwd=home)
    assert summary["kept"] > 0 and summary["per_class"] == {}
    assert summary["kept"] + sum(summary["dropped"].values()) == summary["pool"]
    kept = pq.read_table(home / "clean" / "kept.parquet")
    assert kept["cls"].null_count == kept["confidence"].null_count == len(kept) == summary["kept"]
    samples = read_plainly(*sorted((home / "clean").glob("*.tar")), decode=True)
    assert [sample["__key__"] for sample in samples] == kept["key"].to_pylist()
    assert not any("cls" in sample for sample in samples)
    assert all("pseudo_label" not in sample["json"]["curate"] for sample in samples)
    assert json.loads((home / "clean" / "run.json").read_text())["classes"] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--where", "confidence > .9"), "--where 'confidence > .9': confidence is empty, because run was trained on"),
        (("--where", "pseudo_label = 'cat'"), "pseudo_label is empty, because run was trained on images without"),
        (("--min-confidence", "0.5"), "--min-confidence: run was trained on images without classes"),
        (("--per-class", "5"), "--per-class: run was trained on images without classes"),
    ],
)
def test_options_about_classes_are_refused_in_a_sentence(
    home: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = curate("export", "--out", str(tmp_path / "no"), *arguments, cwd=home)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "no").exists()


def test_verify_finds_nothing_wrong_and_labels_where_none_belong(home: Path, tmp_path: Path) -> None:
    assert run("verify", cwd=home)["problems"] == []
    shutil.copytree(home / "run", tmp_path / "run")
    path = next((tmp_path / "run" / "scores").glob("*.parquet"))
    table = pq.read_table(path)
    column = table.schema.field("pseudo_label")
    labels = pa.array(["cat"] + [None] * (len(table) - 1), column.type)
    changed = table.set_column(table.column_names.index("pseudo_label"), column, labels)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    done = curate("verify", "--pool", str(home / "pool"), "--run", str(tmp_path / "run"), "--json", cwd=home)
    assert [found["what"] for found in json.loads(done.stdout)["problems"]] == [
        "has pseudo-labels, but the model has no classes"
    ]


def test_marks_join_the_next_training_and_a_label_only_says_real(home: Path, tmp_path: Path) -> None:
    rows = Pool.open(home / "pool").rows("00000").slice(0, 3).to_pylist()
    verdicts: tuple[tuple[marks.Verdict, str | None], ...] = (("real", "cat"), ("real", None), ("synthetic", None))
    made = [
        Mark(sha256=row["sha256"], key=row["key"], verdict=verdict, label=label)
        for row, (verdict, label) in zip(rows, verdicts, strict=True)
    ]
    shutil.copytree(home / "run", tmp_path / "run")
    marks.append(tmp_path / "run", made)
    scored = ScoredPool.open(home / "pool", tmp_path / "run")
    assert scored.rows("00000", ["pseudo_label"])["pseudo_label"].null_count == scored.num_rows("00000")
    flags = ("--labeled", "photos", "--config", "small.toml", "--no-resume", "--run", str(tmp_path / "run"))
    assert run("train", *flags, cwd=home)["marked"] == {"labeled": 0, "real": 2, "synthetic": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ("--method", "fixmatch"),
            2,
            "photos has no class folders, and --method fixmatch learns nothing else. Make one",
        ),
        (("--validation", "photos"), 2, "--validation photos: the labeled set has no classes"),
        (("--init-from", "run"), 1, "run: its backbone is untrained, so there is nothing to start from"),
    ],
)
def test_what_needs_classes_is_refused_in_a_sentence(
    home: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    flags = ("--labeled", "photos", "--config", "small.toml", "--run", str(tmp_path / "other"))
    done = curate("train", *flags, *arguments, cwd=home)
    assert done.returncode == code and sentence in done.stderr and "Traceback" not in done.stderr


def test_classes_that_come_later_are_not_resumed_into(home: Path, world: World) -> None:
    done = curate("train", "--labeled", str(world.seed), "--config", "small.toml", cwd=home)
    assert done.returncode == 1 and "was trained with other classes" in done.stderr
