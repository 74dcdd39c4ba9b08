"""curate from Python does what its commands do, says what they say, and costs nothing until it is used."""

import contextlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import curate
from tests.conftest import World
from tests.warm import curate as command

ROOT = Path(__file__).parents[2]


def test_importing_it_loads_no_library() -> None:
    script = "import sys\nimport curate\nprint({'torch', 'pyarrow', 'numpy', 'pydantic', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
    assert set(dir(curate)) == set(curate.__all__)
    assert all(getattr(curate, name).__doc__ for name in curate.__all__)
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        curate.scores  # type: ignore[attr-defined]  # noqa: B018


def test_mistakes_are_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(curate.CurateError, match="no setting 'num_step'; did you mean 'num_steps'"):
        curate.train(tmp_path, pool=tmp_path, num_step=3)
    with pytest.raises(curate.CurateError, match="--shard-size 0"):
        curate.ingest(tmp_path, pool=tmp_path / "pool", shard_size=0)
    with pytest.raises(curate.CurateError, match="curate ingest"):
        curate.Pool(tmp_path)
    with pytest.raises(curate.CurateError, match=f"{Path.home()}/no-such-pool"):
        curate.verify(pool="~/no-such-pool")
    with pytest.raises(curate.CurateError, match="curate train"):
        curate.Detector(tmp_path)


def by_the_card(folder: Path, data: bytes) -> float:
    """What detector.pt2 gives an image, by the lines in the card of the model."""
    (folder / "photo.jpg").write_bytes(data)
    card = (folder / "README.md").read_text()
    use, crop = (textwrap.dedent(text) for text in re.findall(r"((?:^    .*\n)+)", card, re.MULTILINE)[1:3])
    names: dict[str, Any] = {"torch": torch}
    with contextlib.chdir(folder):
        exec(crop, names)
        exec(use, names)
    (folder / "photo.jpg").unlink()
    return float(names["prob_synthetic"][0])


@pytest.mark.slow
def test_the_main_job(world: World, tmp_path: Path) -> None:
    pool, run, out = tmp_path / "pool", tmp_path / "run", tmp_path / "clean"
    read = curate.ingest(world.root / "crawl", pool=pool, jobs=1)
    assert len(curate.Pool(pool)) == read.kept == curate.Pool(pool).table(["key"]).num_rows
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[network]\nbackbone = "small"\n[recipe]\nbatch_size = 8\n')
    trained = curate.train(world.seed, pool=pool, run=run, config=str(recipe), num_steps=6, device="cpu")
    assert trained.num_steps == 6
    scored = curate.score(pool=pool, run=run, device="cpu")
    assert scored.num_images == read.kept
    table = curate.Scores(run, pool).table(["key", "verdict", "prob_synthetic", "pseudo_label"])
    assert table.column_names == ["key", "verdict", "prob_synthetic", "pseudo_label"] and len(table) == read.kept
    manifest = curate.Pool(pool).table(["shard", "offset", "num_bytes"]).to_pylist()
    where = manifest[3]
    data = (pool / f"{where['shard']}.tar").read_bytes()[where["offset"] :][: where["num_bytes"]]
    (tmp_path / "photo.jpg").write_bytes(data)
    found = curate.Detector(run, "cpu").score([data, tmp_path / "photo.jpg"])
    row = table.to_pylist()[3]
    assert found["pseudo_label"].to_pylist() == [row["pseudo_label"]] * 2
    assert found["prob_synthetic"].to_pylist() == pytest.approx([row["prob_synthetic"]] * 2, abs=1e-5)
    assert found["verdict"].to_pylist() == [row["verdict"]] * 2
    assert by_the_card(run / "model", data) == pytest.approx(row["prob_synthetic"], abs=1e-5)
    for image, says in ((b"no image", "an image"), (tmp_path / "gone.jpg", "gone.jpg: cannot be read")):
        with pytest.raises(curate.CurateError, match=says):
            curate.Detector(run, "cpu").score([image])
    exported = curate.export(out, pool=pool, run=run, keep="all", where="prob_synthetic < 0.99", jobs=1)
    assert pq.read_table(out / "kept.parquet").num_rows == exported.kept
    assert not curate.verify(pool=pool, run=run).problems

    # The command leaves the same.
    line = f"train --labeled {world.seed} --config {recipe} --num-steps 6 --device cpu --pool {pool} --run again"
    assert command(*line.split(), cwd=tmp_path).returncode == 0
    for name in ("classifier.safetensors", "detector.safetensors"):
        assert (tmp_path / "again" / "model" / name).read_bytes() == (run / "model" / name).read_bytes()


@pytest.mark.slow
def test_the_notebook_runs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one after the other, with fewer steps, on a toy world of small images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(world.root)
    cells = json.loads((ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("STEPS = 200", "STEPS = 6"), names)
    assert names["read"].kept == names["scores"].num_rows == len(names["pool"])
    assert names["exported"].kept == pq.read_table("notebook/clean/kept.parquet").num_rows
