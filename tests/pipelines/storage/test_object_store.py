"""All stages on an object store: a real server of the S3 protocol on loopback, which can fail on purpose."""

import io
import itertools
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
pytest.importorskip("moto.server", reason="the development extra `moto[server]` is not installed")

import s3fs
from moto.server import create_backend_app
from werkzeug.serving import make_server

from models.classifier import Classifier
from models.detector import Detector
from pipelines import export, ingest, score, verify
from pipelines.errors import BadInput, CorruptShard, Incompatible, MissingArtifact
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.progress import Tick
from pipelines.run import model
from pipelines.storage import locations
from pipelines.storage.locations import Location, locate
from pipelines.storage.shards import read_spans

CLASSES = ("disc", "cross")


class Flaky:
    """A server's application that, when told to, fails each request once: PUT with 503, GET in turn with 503 and half
    of the body.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._lock = application, threading.Lock()
        self.requests: list[str] = []
        self.failing = False
        self.failures = {"refused": 0, "cut": 0}
        self._cuts = itertools.cycle((True, False))  # whether the next first GET is cut
        self._seen: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ.get('HTTP_RANGE', '')}"
        with self._lock:
            self.requests.append(what)
            attempt = self._seen[what] = self._seen.get(what, 0) + 1
            fails = self.failing and attempt == 1 and environ["REQUEST_METHOD"] in ("PUT", "GET")
            is_cut = fails and environ["REQUEST_METHOD"] == "GET" and next(self._cuts)
        if fails:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if not is_cut:
                self.failures["refused"] += 1
                start_response("503 Slow Down", [("Content-Length", "0")])
                return [b""]
            self.failures["cut"] += 1
            body = b"".join(self._application(environ, start_response))
            return [body[: len(body) // 2]]  # then the connection closes
        return self._application(environ, start_response)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Flaky, str]]:
    # Build the application first: moto imports for seconds, for which the first request would have to wait.
    flaky = Flaky(create_backend_app("s3"))
    listening = make_server("127.0.0.1", 0, flaky, threaded=True)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield flaky, f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def bucket(server: tuple[Flaky, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new bucket; the environment names the server, as it would name a real one."""
    for name, value in {
        "AWS_ENDPOINT_URL": server[1], "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    name = f"s3://bucket-{abs(hash(request.node.name)) % 10**9}"
    files.mkdir(name)
    yield name
    server[0].failing = False
    files.rm(name, recursive=True)


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 30 pictures with captions, with duplicates across them and a file that is not an image."""
    root = tmp_path_factory.mktemp("crawl")
    for shard in range(3):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for row in range(30):
                seed = 0 if row == 5 else shard * 100 + row
                content = b"<html>" if row == 7 else picture(seed)
                for suffix, data in (("jpg", content), ("txt", b"a caption")):
                    info = tarfile.TarInfo(f"{row:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


@pytest.fixture(scope="module")
def local(crawl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same crawl ingested, scored and exported on the disk."""
    root = tmp_path_factory.mktemp("local")
    ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=root / "pool", jobs=1))
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=CLASSES, method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=0,
        pool="pool",
    )  # fmt: skip
    model.save(root / "run" / "model", config, Classifier("small", len(CLASSES)).eval(), Detector().eval())
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))
    export.run(exporting(root / "clean", root / "pool", root / "run"))
    return root


def exporting(out: Location | str, pool: Location | str, run: Path) -> export.ExportConfig:
    return export.ExportConfig(out=out, pool=pool, run=run, keep="all", shard_size=40, jobs=1)  # type: ignore[arg-type]


def content(folder: Location) -> dict[str, bytes]:
    """Bytes of all files of a pool or an export but the one with times and paths."""
    found = {
        name: locations.read(folder / name) for name in locations.names(folder) if "." in name and name != "run.json"
    }
    rejects = folder / "rejects"
    return found | {f"rejects/{name}": locations.read(rejects / name) for name in locations.names(rejects)}


def ingested(pool: str, crawl: Path, **options: Any) -> ingest.Summary:
    return ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=pool, **({"jobs": 1} | options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("failing", [False, True])
def test_every_stage_on_a_store_gives_the_bytes_that_it_gives_on_a_disk(
    bucket: str, server: tuple[Flaky, str], crawl: Path, local: Path, tmp_path: Path, failing: bool
) -> None:
    """Also if the store fails each request once: with an error, or by closing the connection in the middle."""
    pool, run, flaky = f"{bucket}/pool", tmp_path / "run", server[0]
    shutil.copytree(local / "run", run, ignore=shutil.ignore_patterns("scores", "embeddings", "index"))
    flaky.failing = failing
    summary = ingested(pool, crawl, jobs=2 if failing else 1)
    assert summary.kept + sum(summary.rejected.values()) == summary.read == 90 - summary.again
    assert content(locate(pool)) == content(local / "pool")
    assert score.run(score.ScoreConfig(pool=pool, run=run, device="cpu")).num_images == summary.kept  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in (run / "scores").iterdir()} == {
        path.name: path.read_bytes() for path in (local / "run" / "scores").iterdir()
    }
    export.run(exporting(f"{bucket}/clean", pool, run))
    assert content(locate(f"{bucket}/clean")) == content(local / "clean")
    assert not verify.run(verify.VerifyConfig(pool=pool, run=run)).problems  # type: ignore[arg-type]
    assert ingested(pool, crawl).skipped == 3
    assert locations.names(locate(pool)) == locations.names(local / "pool")
    assert not failing or min(flaky.failures.values()) > 10


def test_workers_of_ray_hand_their_shards_over_through_the_store(bucket: str, crawl: Path, local: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    ingested(f"{bucket}/pool", crawl, engine="ray", jobs=2)
    assert content(locate(f"{bucket}/pool")) == content(local / "pool")


def test_a_crawl_on_a_store_is_read_as_one_on_a_disk(bucket: str, crawl: Path, local: Path, tmp_path: Path) -> None:
    for path in crawl.iterdir():
        locations.put(path, locate(f"{bucket}/crawl/{path.name}"))  # type: ignore[arg-type]
    ingest.run(ingest.IngestConfig(sources=(f"{bucket}/crawl",), pool=tmp_path / "pool", jobs=2))
    for shard in Pool(local / "pool").shards:
        assert (tmp_path / "pool" / f"{shard}.tar").read_bytes() == (local / "pool" / f"{shard}.tar").read_bytes()


def test_random_images_are_read_by_ranges_side_by_side(
    bucket: str, server: tuple[Flaky, str], crawl: Path, local: Path
) -> None:
    pool = f"{bucket}/pool"
    ingested(pool, crawl)
    rows, there = Rows.of_pool(Pool.open(local / "pool")), Rows.of_pool(Pool.open(locate(pool)))
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    server[0].requests.clear()
    assert there.read(order) == rows.read(order)
    asked = [request for request in server[0].requests if ".tar" in request]
    assert all("bytes=" in request for request in asked) and len(asked) <= len(order)
    server[0].requests.clear()
    assert there.read(range(len(rows))) == rows.read(range(len(rows)))
    assert sum(".tar" in request for request in server[0].requests) == 3  # neighbors at once: one for each shard


def test_a_shard_that_is_cut_or_gone_is_one_sentence(bucket: str, crawl: Path) -> None:
    pool = locate(f"{bucket}/pool")
    ingested(str(pool), crawl)
    tar = Pool(pool).tar("00001")
    with pytest.raises(CorruptShard, match=r"00001\.tar: is shorter"):
        list(read_spans(tar, [(locations.size(tar) - 100, 1000)]))
    locations.remove(tar)
    with pytest.raises(CorruptShard, match=r"00001\.tar.* is missing"):
        list(read_spans(tar, [(512, 1000)]))


def test_an_interrupted_ingest_resumes_and_a_second_one_stops_the_first(bucket: str, crawl: Path, local: Path) -> None:
    pool = f"{bucket}/pool"

    def second(tick: Tick) -> None:
        if tick.figures["shards"] == 1:
            ingested(pool, crawl)

    with pytest.raises(Incompatible, match="another ingest into it has begun"):
        ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=pool, jobs=1), second)  # type: ignore[arg-type]
    assert content(locate(pool)) == content(local / "pool")

    def stop(tick: Tick) -> None:
        raise KeyboardInterrupt

    other = f"{bucket}/other"
    with pytest.raises(KeyboardInterrupt):
        ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=other, jobs=1), stop)  # type: ignore[arg-type]
    assert Pool(locate(other)).shards == ("00000",)
    ingested(other, crawl)
    assert content(locate(other)) == content(local / "pool")


def test_an_export_replaces_its_own_and_nothing_else(bucket: str, local: Path) -> None:
    out = locate(f"{bucket}/clean")
    export.run(exporting(out, local / "pool", local / "run"))
    export.run(exporting(out, local / "pool", local / "run").model_copy(update={"shard_size": 1000}))
    assert locations.names(out) == [
        "00000.tar", "00000_stats.json", "README.md", "classes.txt", "croissant.json", "dropped.parquet",
        "kept.parquet", "run.json", "uids.npy",
    ]  # fmt: skip
    locations.remove(out / "run.json")
    with pytest.raises(BadInput, match="is not an export"):
        export.run(exporting(out, local / "pool", local / "run"))


def test_what_is_not_there_or_not_allowed_is_one_sentence(
    bucket: str, crawl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingArtifact, match="run `curate ingest"):
        Pool.open(locate(f"{bucket}/pool"))
    with pytest.raises(BadInput, match=r"--run s3://bucket-.*: is not on a disk"):
        score.ScoreConfig(run=f"{bucket}/run")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="make the bucket or repository first"):
        ingested("s3://no-such-bucket/pool", crawl)
    assert locate("file:///data/pool") == Path("/data/pool")
    with pytest.raises(BadInput, match="nosuch://bucket/pool: cannot be reached"):
        locate("nosuch://bucket/pool")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(BadInput, match="s3://bucket/pool: cannot be reached"):
        Pool.open(locate("s3://bucket/pool"))
    assert not any(tmp_path.iterdir())
