"""Sources, pools and exports on the Hugging Face Hub: the real HfFileSystem, and a stand-in of the Hub on loopback."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("werkzeug", reason="the development extra `moto[server]` is not installed")

from huggingface_hub import constants
from huggingface_hub.hf_file_system import HfFileSystem
from werkzeug.serving import make_server

from pipelines import export, ingest, verify
from pipelines.errors import BadInput, Incompatible
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.storage.locations import locate
from tests.pipelines.storage.hub import Hub
from tests.pipelines.storage.tar_bytes import END, member

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    listening = make_server("127.0.0.1", 0, made, threaded=True)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)  # of the processes that decode
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    HfFileSystem.clear_instance_cache()
    yield made
    HfFileSystem.clear_instance_cache()
    listening.shutdown()
    thread.join()
    listening.server_close()


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def tar_of(*members: tuple[str, bytes]) -> bytes:
    return b"".join(member(name, data) for name, data in members) + END


def crawl() -> dict[str, bytes]:
    """A repository with two tars, a parquet, and loose files with captions, as people upload them."""
    table, file = pa.table({"image": [{"bytes": picture(i), "path": f"{i}.jpg"} for i in range(30, 36)]}), io.BytesIO()
    pq.write_table(table, file)
    tars = {
        f"data/{shard:05d}.tar": tar_of(
            *[(f"{shard}{row}.{end}", data) for row in range(3) for end, data in (("jpg", picture(shard * 10 + row)),)]
        )
        for shard in range(2)
    }
    loose = {f"loose/{i}.jpg": picture(50 + i) for i in range(3)} | {"loose/0.txt": b"a caption"}
    return tars | loose | {"data/train.parquet": file.getvalue(), "README.md": b"# A crawl\n"}


def ingesting(*sources: str, pool: Path | str) -> ingest.Summary:
    return ingest.run(ingest.IngestConfig(sources=sources, pool=pool, jobs=1))  # type: ignore[arg-type]


def members(pool: Pool) -> list[str]:
    return [name for table in pool.tables(["member"]) for name in table["member"].to_pylist()]


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_repository_is_a_source(hub: Hub, tmp_path: Path, revision: str) -> None:
    hub.create("ann/crawl", crawl())
    made = ingesting(f"hf://datasets/ann/crawl{revision}", pool=tmp_path / "pool")
    assert (made.kept, made.rejected) == (15, {})
    pool = Pool(tmp_path / "pool")
    assert members(pool)[:3] == ["00.jpg", "01.jpg", "02.jpg"]
    sources = {source for table in pool.tables(["source"]) for source in table["source"].to_pylist()}
    root = f"hf://datasets/ann/crawl{revision}"
    assert sources == {root, *(f"{root}/data/{name}" for name in ("00000.tar", "00001.tar", "train.parquet"))}
    captions = [text for table in pool.tables(["caption"]) for text in table["caption"].to_pylist()]
    assert captions.count("a caption") == 1
    again = ingesting(f"hf://datasets/ann/crawl{revision}", pool=tmp_path / "pool")
    assert (again.read, again.shards) == (0, 0)


def test_files_of_a_repository_are_sources_and_are_known_by_their_content(hub: Hub, tmp_path: Path) -> None:
    hub.create("ann/crawl", crawl())
    root, pool = "hf://datasets/ann/crawl/data", tmp_path / "pool"
    assert ingesting(f"{root}/{{00000..00001}}.tar", f"{root}/train.parquet", pool=pool).kept == 12
    hub.create("bob/copy", {f"moved/{Path(name).name}": data for name, data in crawl().items() if "data/" in name})
    assert ingesting("hf://datasets/bob/copy/moved", pool=pool).read == 0  # the same files in another repository
    changed = hub.repositories["bob/copy"]["moved/00000.tar"].replace(picture(2), bytes(len(picture(2))))
    hub.create("bob/other", {"00000.tar": changed})  # of the same size
    assert ingesting("hf://datasets/bob/other/00000.tar", pool=pool).read == 1


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("hf://datasets/ann/nothing", r"hf://datasets/ann/nothing: cannot be read \(.*repository not found"),
        ("hf://datasets/ann/crawl@v2", r"hf://datasets/ann/crawl@v2: cannot be read \(.*revision not found"),
        ("hf://datasets/ann/crawl/none.tar", r"none\.tar: cannot be read"),
        ("hf://datasets/ann", r"hf://datasets/ann: cannot be read"),
        ("hf://datasets/ann/crawl/README.md", r"README\.md: is neither a folder nor a \.tar"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(hub: Hub, tmp_path: Path, source: str, sentence: str) -> None:
    hub.create("ann/crawl", crawl())
    with pytest.raises(BadInput, match=sentence) as raised:
        ingesting(source, pool=tmp_path / "pool")
    assert "\n" not in str(raised.value)


def test_a_pool_and_an_export_on_the_hub_are_those_of_the_disk(hub: Hub, tmp_path: Path) -> None:
    hub.create("ann/crawl", crawl())
    hub.create("ann/pool")
    hub.create("ann/clean")
    remote = "hf://datasets/ann/pool"
    assert ingesting("hf://datasets/ann/crawl", pool=remote).kept == 15
    ingesting("hf://datasets/ann/crawl", pool=tmp_path / "pool")
    stored = hub.repositories["ann/pool"]
    local = {
        str(path.relative_to(tmp_path / "pool")): path for path in (tmp_path / "pool").rglob("*") if path.is_file()
    }
    assert stored.keys() == local.keys() | {".gitattributes"}
    assert all(stored[name] == path.read_bytes() for name, path in local.items() if name != "run.json")
    assert verify.run(verify.VerifyConfig(pool=locate(remote), run=tmp_path / "run")).problems == ()
    for out in ("hf://datasets/ann/clean", "hf://datasets/ann/clean", "hf://datasets/ann/clean/v2"):
        settings = {"out": out, "pool": remote, "run": tmp_path / "run", "keep": "all", "jobs": 1}
        assert export.run(export.ExportConfig.model_validate(settings)).kept == 15
    export.run(export.ExportConfig(out=tmp_path / "clean", pool=tmp_path / "pool", run=tmp_path / "run", keep="all"))
    there = hub.repositories["ann/clean"]
    for name in ("00000.tar", "kept.parquet", "classes.txt", "uids.npy"):
        if (tmp_path / "clean" / name).exists():
            assert there[name] == there[f"v2/{name}"] == (tmp_path / "clean" / name).read_bytes()
    assert {name for name in there if "/" not in name} - {".gitattributes"} == {
        path.name for path in (tmp_path / "clean").iterdir()
    }
    assert read_parquet(tmp_path / "clean" / "kept.parquet").num_rows == 15


def test_other_repositories_are_left_alone(hub: Hub, tmp_path: Path) -> None:
    hub.create("ann/crawl", crawl())
    before = dict(hub.repositories["ann/crawl"])
    with pytest.raises(Incompatible, match=r"hf://datasets/ann/crawl.*: is not empty and not a pool"):
        ingesting("hf://datasets/ann/crawl", pool="hf://datasets/ann/crawl")
    ingesting("hf://datasets/ann/crawl", pool=tmp_path / "pool")
    with pytest.raises(BadInput, match=r"holds data, which no export wrote"):
        export.run(
            export.ExportConfig(
                out=locate("hf://datasets/ann/crawl"), pool=tmp_path / "pool", run=tmp_path / "run", keep="all"
            )
        )
    assert hub.repositories["ann/crawl"] == before


def test_a_repository_that_is_missing_is_not_made(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(picture(1))
    with pytest.raises(BadInput, match=r"hf://datasets/ann/none/.*cannot be written .*make the bucket or repository"):
        ingesting(str(tmp_path), pool="hf://datasets/ann/none")
