"""`curate export` as a person types it."""

import json
from pathlib import Path

import pytest

from pipelines.pool.manifest import Pool
from tests.warm import curate

pytestmark = pytest.mark.slow


def test_the_defaults_and_what_to_do_next(scored: Path, tmp_path: Path) -> None:
    done = curate("export", "--out", str(tmp_path / "clean"), "--keep", "all", cwd=scored)
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout and "disc" in done.stdout
    assert f"Next: {tmp_path}/clean/README.md has the lines that load it" in " ".join(done.stderr.split())
    assert (tmp_path / "clean" / "00000.tar").exists()
    assert "look at images before you delete any" in " ".join(done.stderr.split()).rpartition("The detector: ")[2]


def test_a_pool_without_scores_is_exported_as_it_is(scored: Path, tmp_path: Path) -> None:
    flags = ("--keep", "all", "--run", "none", "--format", "parquet", "--json")
    done = curate("export", "--out", str(tmp_path / "all"), *flags, cwd=scored)
    summary = json.loads(done.stdout)
    assert (summary["kept"], summary["per_class"], summary["warning"]) == (summary["pool"], {}, "")
    assert (tmp_path / "all" / "00000.parquet").exists()
    card = (tmp_path / "all" / "README.md").read_text()
    assert "Nothing was scored" in card and not (tmp_path / "all" / "classes.txt").exists()


def test_json_is_one_object_on_stdout_and_its_counts_add_up(scored: Path, tmp_path: Path) -> None:
    flags = ("--where", "width >= 32 and key like '%1'", "--keep", "all", "--per-class", "3", "--json")
    done = curate("export", "--out", str(tmp_path / "clean"), *flags, cwd=scored)
    summary = json.loads(done.stdout)
    assert summary["pool"] == Pool.open(scored / "pool").num_images
    assert summary["kept"] + sum(summary["dropped"].values()) == summary["pool"]
    assert max(summary["per_class"].values()) <= 3


def test_a_recipe_is_over_ruled_by_a_flag(scored: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'out = "{tmp_path}/a"\nkeep = "all"\nmin_confidence = 1.0\n')
    flags = ("--config", str(tmp_path / "r.toml"), "--min-confidence", "0")
    summary = json.loads(curate("export", *flags, "--json", cwd=scored).stdout)
    assert (summary["kept"], summary["out"]) == (summary["pool"], f"{tmp_path}/a")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "--out is missing"),
        (("--out", "clean", "--where", "prob_synthetik < 1"), 2, "did you mean 'prob_synthetic'?"),
        (("--out", "clean", "--min-confidence", "2"), 2, "--min-confidence"),
        (("--out", "clean", "--run", "nowhere"), 1, "run `curate score` first"),
        (("--out", "clean", "--run", "nowhere"), 1, "or add --keep all"),
        (
            ("--out", "clean", "--run", "no", "--keep", "all", "--where", "confidence > 0"),
            2,
            "no has no scores of pool",
        ),
        (("--out", "clean", "--run", "no", "--keep", "all", "--per-class", "1"), 2, "no has no scores of pool"),
        (("--out", "clean", "--exclude", "nothing"), 2, "--exclude nothing: nothing cannot be read"),
        (("--out", "clean", "--format", "zip"), 2, "--format"),
        (("--out", "pool"), 2, "Name another folder with --out"),
        (("--out", "clean", "--keep", "some"), 2, "--keep"),
        (("--out", "clean", "--per-clas", "2"), 2, "--per-class"),
    ],
)
def test_mistakes_are_one_sentence(scored: Path, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = curate("export", *arguments, cwd=scored)
    assert done.returncode == code
    assert sentence in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert not (scored / "clean").exists()


def test_help_names_every_option(tmp_path: Path) -> None:
    text = curate("export", "--help", cwd=tmp_path).stdout
    names = "out pool run where keep min-confidence drop-near-duplicates radius per-class shard-size config json"
    for name in names.split():
        assert f"--{name}" in text
