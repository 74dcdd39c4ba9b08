"""`curate ingest` as a person types it."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.warm import ROOT, curate

pytestmark = pytest.mark.slow


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    folder = tmp_path / "crawl"
    folder.mkdir()
    for number in range(3):
        out = io.BytesIO()
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(out, "JPEG")
        (folder / f"{number}.jpg").write_bytes(out.getvalue())
    (folder / "3.jpg").write_bytes(b"<html>")
    return folder


def test_the_default_pool_and_what_to_do_next(crawl: Path) -> None:
    done = curate("ingest", "./crawl", cwd=crawl.parent)
    assert done.returncode == 0, done.stderr
    assert "not_an_image" in done.stdout and "kept" in done.stdout
    assert "Next: curate train --labeled" in done.stderr
    assert (crawl.parent / "pool/00000.tar").exists()


def test_the_next_command_can_be_pasted(crawl: Path) -> None:
    done = curate("ingest", "crawl", "--pool", "pool with space", "--jobs", "1", cwd=crawl.parent)
    assert "Next: curate train --labeled DIR --pool 'pool with space', where" in done.stderr


def test_sources_and_tars_of_any_name_are_ingested(crawl: Path) -> None:
    names = [b"L\xf6we", b"a b", b"50%", b"{x}"]
    for number, name in enumerate(names):
        folder = Path(os.fsdecode(os.fsencode(crawl.parent) + b"/" + name))
        folder.mkdir()
        shutil.copy(crawl / "1.jpg", folder / "1.jpg")
        with tarfile.open(Path(os.fsdecode(os.fsencode(folder) + b"/t\xe9.tar")), "w") as tar:
            content = (crawl / "2.jpg").read_bytes() + bytes([number])
            member = tarfile.TarInfo("1.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    sources = [os.fsdecode(name) for name in names]
    done = curate("ingest", *sources, "--jobs", "1", "--json", cwd=crawl.parent)
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["read"], summary["again"], summary["kept"]) == (0, 5, 3, 5), done.stderr
    again = json.loads(curate("ingest", *sources, "--jobs", "1", "--json", cwd=crawl.parent).stdout)
    assert (again["read"], again["skipped"], again["images"]) == (0, 8, 5)
    assert curate("verify", cwd=crawl.parent).returncode == 0


def test_json_is_one_object_on_stdout(crawl: Path) -> None:
    done = curate("ingest", "crawl", "--pool", "p", "--jobs", "1", "--min-side", "32", "--json", cwd=crawl.parent)
    summary = json.loads(done.stdout)
    assert (summary["read"], summary["kept"], summary["rejected"]) == (4, 3, {"not_an_image": 1})


def test_a_recipe_is_over_ruled_by_a_flag(crawl: Path) -> None:
    (crawl.parent / "r.toml").write_text("shard_size = 2\nmin_side = 64\n")
    done = curate("ingest", "crawl", "--config", "r.toml", "--min-side", "8", "--json", cwd=crawl.parent)
    summary = json.loads(done.stdout)
    assert (summary["shards"], summary["kept"]) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("nowhere",), 2, "curate: nowhere: cannot be read (No such file or directory)."),
        (("crawl", "--min-side", "0"), 2, "--min-side"),
        (("crawl", "--pool", "crawl"), 1, "not a pool"),
        ((), 2, "SOURCE is missing; give it, or sources in --config."),
        (("",), 2, "The name of a source is empty"),
        (("crawl", "--shard-sise", "2"), 2, "--shard-size"),
    ],
)
def test_mistakes_are_one_sentence(crawl: Path, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = curate("ingest", *arguments, cwd=crawl.parent)
    assert done.returncode == code
    assert sentence in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert not (crawl.parent / "pool").exists()


def test_manifests_that_were_not_read_are_counted(crawl: Path) -> None:
    store = b"jumd" + bytes.fromhex("6332706100110010800000aa00389b71")  # of a C2PA manifest store
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(out, "JPEG", comment=store)
    content = out.getvalue()
    segment = b"JP\0\1\0\0\0\1" + store
    (crawl / "4.jpg").write_bytes(
        content[:2] + b"\xff\xeb" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    )
    without = crawl.parent / "without"  # an environment that lacks the extra
    without.mkdir()
    (without / "c2pa.py").write_text("raise ImportError")
    environment = os.environ | {"PYTHONPATH": f"{without}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "curate", "ingest", "crawl"]
    done = subprocess.run(command, cwd=crawl.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "c2pa (not read)" in done.stdout
    assert "1 C2PA manifest not read." in " ".join(done.stderr.split())


def test_help_names_every_option(tmp_path: Path) -> None:
    text = curate("ingest", "--help", cwd=tmp_path).stdout
    for option in ("--pool", "--jobs", "--min-side", "--max-pixels", "--shard-size", "--config", "--json"):
        assert option in text
