"""What `curate demo` refuses; the whole of it takes a minute and is run by `make demo`."""

from pathlib import Path

import pytest

from tests.warm import curate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("notes.txt", "mine", "in use and not by a demo"),
        ("demo.json", "[]", "in use and not by a demo"),
        ("demo.json", '{"seed": 3}', "holds the demo of --seed 3"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, file: str, text: str, says: str) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / file).write_text(text)
    done = curate("demo", cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert [(path.name, path.read_text()) for path in (tmp_path / "demo").iterdir()] == [(file, text)]
