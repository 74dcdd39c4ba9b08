"""`curate verify` as a person types it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.warm import curate

pytestmark = pytest.mark.slow


def test_sound_exits_0_and_a_flipped_bit_1_with_what_to_do(scored: Path, tmp_path: Path) -> None:
    done = curate("verify", "--json", cwd=scored)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []
    shutil.copytree(scored, tmp_path / "copy")
    tar = tmp_path / "copy" / "pool" / "00000.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    done = curate("verify", cwd=tmp_path / "copy")
    assert done.returncode == 1
    assert "are not those in the manifest" in done.stdout
    assert "curate ingest" in done.stdout
    assert "Traceback" not in done.stderr
