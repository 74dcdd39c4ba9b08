import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import export
from pipelines.errors import BadInput
from tests.pipelines.export.exports import files, settings


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


def test_killed_and_run_again_it_is_the_uninterrupted_export(pool: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.run(settings(out, pool, run, shard_size=50))
    whole = files(out)
    program = (
        "import sys; import webdataset; from pipelines import export\n"
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
