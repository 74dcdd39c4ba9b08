"""The fuzzer of tests/bench in short: a few hundred damaged files of every format, all accounted for."""

import random
from pathlib import Path

from pipelines.images.formats import FORMATS
from tests.bench import fuzz


def test_damaged_files_of_every_format_are_kept_or_rejected_with_a_reason(tmp_path: Path) -> None:
    found = fuzz.fuzz(tmp_path, num_inputs=400, seed=11)
    assert found["crashed_or_too_slow"] == 0
    assert found["kept_but_unreadable"] == [] and found["problems"] == []
    assert found["read"] == found["kept"] + sum(found["rejected"].values()) >= 384
    assert found["kept"] > 50 and sum(found["rejected"].values()) > 100  # neither all intact nor all beyond repair
    assert {kind.partition("-")[0] for kind in found["outcomes"]} == {*FORMATS, "tar", "parquet"}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    laid_out = list[dict[str, bytes]]()
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        fuzz.lay_out(tmp_path / run, 100, random.Random(3))
        laid_out.append({path.name: path.read_bytes() for path in (tmp_path / run).iterdir()})
    assert laid_out[0] == laid_out[1]
