"""Files that are no images by their names, and tables that do not fit: what is left out is said."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import BadInput
from pipelines.images.check import Limits, examine, foreign_images
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest import clutter, sources
from pipelines.ingest.sources import FilesUnit

LIMITS = Limits(min_side=16, max_pixels=1 << 24, max_bytes=1 << 24)


def picture(fmt: str = "PNG", **more: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((40, 40)).convert("RGB").save(out, fmt, **more)
    return out.getvalue()


def look(*given: Path) -> tuple[list[str], list[str]]:
    """Names of the files that are read, and the notes."""
    found = list(sources.find([str(path) for path in given], shard_size=100, pool=Path("/nowhere/pool")))
    files = [file.name for each in found if isinstance(each, FilesUnit) for file in each.files]
    return files, [each for each in found if isinstance(each, str)]


def write(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("data-00000-of-00001.arrow", "Arrow"), ("shard.00000.mds", "MDS"), ("train.tfrecord", "TFRecord"),
        ("data.mdb", "LMDB"), ("x.H5", "HDF5"), ("1.npy", "NumPy"), ("latents.pt", "PyTorch"), ("s.tar.idx", ""),
        ("state.json", ""), ("README", ""), ("captions.csv", ""), ("1.jpg", None), ("noext", None),
    ],
)  # fmt: skip
def test_a_file_is_known_by_its_name(name: str, kind: str | None) -> None:
    assert clutter.kind(name) == kind


def test_containers_are_said_once_for_each_kind(tmp_path: Path) -> None:
    write(tmp_path, *(f"data-{i:05d}-of-00005.arrow" for i in range(5)), "sub/shard.00000.mds", "state.json")
    write(tmp_path, "0.jpg", content=picture("JPEG"))
    files, notes = look(tmp_path)
    assert files == ["0.jpg"]
    arrow, mds, other = sorted(notes, key=lambda note: ("no image" in note, "MDS" in note))
    assert arrow.startswith(f"{tmp_path}: skipped 5 Arrow files (data-00000-of-00005.arrow, ")
    assert "load_from_disk(FOLDER).to_parquet(FILE)" in arrow
    assert mds == (
        f"{tmp_path}: skipped 1 MDS file (sub/shard.00000.mds). curate reads folders of images, .tar and .parquet "
        "files; convert MDS files first."
    )
    assert other == f"{tmp_path}: skipped a file that is no image by its name (state.json)."


def test_a_container_that_is_named_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.arrow")
    with pytest.raises(BadInput, match=r"a\.arrow: is not read\. curate reads folders of images, .* convert Arrow"):
        look(tmp_path / "a.arrow")


def test_thumbnails_of_network_disks_are_no_part_of_a_crawl(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "sub/__MACOSX/1.jpg", content=picture("JPEG"))
    assert look(tmp_path) == (["1.jpg"], [])


def test_a_table_by_another_name_is_said_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "0.png", content=picture())
    write(tmp_path, "captions.csv", content=b"image,caption\n0.png,a cat\n")
    (note,) = look(tmp_path)[1]
    assert note.endswith(
        "(captions.csv). A table gives its rows to the images if it is called metadata.csv and has a column file_name."
    )


def test_rows_of_a_table_without_their_image_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "0.png", "1.png", content=picture())
    rows = [{"file_name": "0.png"}, {"file_name": "gone.png"}, {"text": "of nothing"}, {"file_name": "x" * 5000}]
    lines = [*map(json.dumps, rows), "{not json", "", json.dumps({"file_name": "a\0b"})]
    write(tmp_path, "metadata.jsonl", content="\n".join(lines).encode())
    assert look(tmp_path) == (
        ["0.png", "1.png"],
        [f"{tmp_path}/metadata.jsonl: 2 of 6 rows name no image and 3 of 6 rows name a file that is not there."],
    )
    write(tmp_path, "metadata.jsonl", content=b'{"file_name": "0.png"}\n{"file_name": "./1.png"}\n')
    assert look(tmp_path)[1] == []
    write(tmp_path, "metadata.jsonl", content=b'{"path": "0.png"}\n')
    assert look(tmp_path)[1] == [
        f"{tmp_path}/metadata.jsonl: not used, none of its rows names an image in a column file_name."
    ]


def test_a_parquet_of_paths_says_that_they_are_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["aGk="], "text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=r"its column 'image' is text \(paths, URLs or base64\)"):
        look(tmp_path / "t.parquet")


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}, None])
def test_a_camera_raw_is_not_taken_for_its_thumbnail(tags: dict[int, object] | None) -> None:
    plain = picture("TIFF")
    content = b"II*\0\x10\0\0\0CR\2\0" + bytes(100) if tags is None else picture("TIFF", tiffinfo=tags)
    with foreign_images():
        found = examine(content, None, LIMITS)
        assert not isinstance(examine(plain, None, LIMITS), Reject)
    assert isinstance(found, Reject)
    assert found.reason == Reason.UNSUPPORTED_FORMAT
