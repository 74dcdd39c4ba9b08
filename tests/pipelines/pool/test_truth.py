"""Truth files: names of images as text."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import BadInput
from pipelines.pool import truth


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_digits_keep_their_zeros(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"truth.{suffix}"
    if suffix == "csv":
        path.write_text("key,is_synthetic,cls\n000123,1,0\n000007,0,2\n")
    else:
        pq.write_table(pa.table({"key": ["000123", "000007"], "is_synthetic": [1, 0], "cls": [0, 2]}), path)
    synthetic, label = truth.read(path).of(["a/000123.jpg", "000007.txt", "123.jpg"])
    assert synthetic.tolist() == [1, 0, truth.UNKNOWN]
    assert label.tolist() == [0, 2, truth.UNKNOWN]


def test_names_with_dots_are_whole_or_up_to_the_first_one(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("key,is_synthetic\nwww.host.example_1,1\n000123,0\n")
    synthetic, _ = truth.read(tmp_path / "truth.csv").of(["www.host.example_1.jpg", "a/000123.image.jpg", "www.x.jpg"])
    assert synthetic.tolist() == [1, 0, truth.UNKNOWN]


def test_an_image_of_the_same_name_with_other_bytes_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text(f"key,is_synthetic,cls,sha256\n1,1,2,{'AB' * 32}\n2,0,1,{'cd' * 32}\n")
    synthetic, label = truth.read(tmp_path / "truth.csv").of(["1.jpg", "2.jpg"], ["ab" * 32, "ef" * 32])
    assert (synthetic.tolist(), label.tolist()) == ([1, truth.UNKNOWN], [2, truth.UNKNOWN])


def test_a_missing_column_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("name,is_synthetic\na,1\n")
    with pytest.raises(BadInput, match="has no column 'key'"):
        truth.read(tmp_path / "truth.csv")
