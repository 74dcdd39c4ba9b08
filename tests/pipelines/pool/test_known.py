"""What is known without a person, of a real pool whose files declare something."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipelines import ingest
from pipelines.errors import BadInput
from pipelines.pool import known
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows


def picture(number: int, what: str | None = None) -> bytes:
    out, image = io.BytesIO(), Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8))
    info, exif = PngImagePlugin.PngInfo(), Image.Exif()
    if what == "synthetic":
        info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a")
    elif what == "camera":
        exif[0x010F] = "Canon"
    image.save(out, "PNG", pnginfo=info, exif=exif)
    return out.getvalue()


DECLARED = ["synthetic", "camera", None, "synthetic", "camera", None, None, None]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    root = tmp_path_factory.mktemp("declared")
    for folder in ("a", "b"):
        (root / folder).mkdir()
    for number, what in enumerate(DECLARED):
        (root / "ab"[number % 2] / f"{number}.png").write_bytes(picture(number, what))
    sources = (str(root / "a"), str(root / "b"))
    ingest.run(ingest.IngestConfig(sources=sources, pool=root / "pool", jobs=1))
    return Pool.open(root / "pool")


def numbers(rows: Rows, flags: np.ndarray) -> list[int]:
    return sorted(int(Path(name).stem) for name, flag in zip(rows.members(), flags, strict=True) if flag)


def test_columns_of_the_manifest_are_those_of_the_rows(pool: Pool) -> None:
    whole = {row["key"]: row for table in pool.tables() for row in table.to_pylist()}
    left_out = frozenset(sorted(row["sha256"] for row in whole.values())[:3])
    rows = Rows.of_pool(pool, without=left_out)
    found = rows.columns(["sha256", "declared"])
    assert found.column_names == ["sha256", "declared"]
    assert found.to_pylist() == [
        {name: whole[key][name] for name in ("sha256", "declared")} for key in rows.key.tolist()
    ]
    nothing = Rows.of_pool(pool, without=frozenset(row["sha256"] for row in whole.values()))
    assert len(nothing) == nothing.columns(["declared"]).num_rows == 0


def test_declarations_are_those_of_the_manifest(pool: Pool) -> None:
    rows = Rows.of_pool(pool)
    found = known.read(rows)
    assert len(found.declared_synthetic) == len(found.declared_camera) == len(found.listed) == len(rows) == 8
    assert numbers(rows, found.declared_synthetic) == numbers(rows, found.synthetic) == [0, 3]
    assert numbers(rows, found.declared_camera) == [1, 4]
    assert not found.listed.any() and found.files == ()
    ignored = known.read(rows, ignore_declared=True)
    assert not ignored.synthetic.any() and not ignored.declared_camera.any()


def test_a_folder_of_known_images_inside_and_outside_of_the_pool(pool: Pool, tmp_path: Path) -> None:
    rows = Rows.of_pool(pool)
    folder = tmp_path / "known"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "in_pool.png").write_bytes(picture(2))
    (folder / "camera.png").write_bytes(picture(4, "camera"))
    (folder / "new.png").write_bytes(picture(100))
    (folder / "twin.png").write_bytes(picture(100))
    (folder / "notes.txt").write_text("not an image")
    found = known.read(rows, folder=folder)
    assert numbers(rows, found.listed) == [2, 4]
    assert numbers(rows, found.synthetic) == [0, 2, 3, 4]
    assert numbers(rows, found.declared_camera) == [1]  # the folder knows better than the file
    assert [(file.path.name, file.content) for file in found.files] == [("new.png", picture(100))]
    alone = known.read(rows, folder=folder, ignore_declared=True)
    assert numbers(rows, alone.synthetic) == [2, 4]


def test_a_folder_that_cannot_be_used_is_one_sentence(pool: Pool, tmp_path: Path) -> None:
    rows, empty, folder = Rows.of_pool(pool), tmp_path / "empty", tmp_path / "known"
    empty.mkdir()
    folder.mkdir()
    with pytest.raises(BadInput, match=r"--known-synthetic .*nowhere is not a folder"):
        known.read(rows, folder=tmp_path / "nowhere")
    with pytest.raises(BadInput, match="holds no image"):
        known.read(rows, folder=empty)
    (folder / "real.png").write_bytes(picture(7))
    digest = next(row["sha256"] for table in pool.tables() for row in table.to_pylist() if "7.png" in row["member"])
    with pytest.raises(BadInput, match=r"real\.png is also in the labeled set, where it counts as real"):
        known.read(rows, folder=folder, labeled=frozenset({digest}))
    (folder / "page.jpg").write_text("<html>")
    with pytest.raises(BadInput, match=r"page\.jpg is not an image"):
        known.read(rows, folder=folder)
