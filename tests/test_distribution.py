"""What is installed: one name everywhere, and a wheel that works in an environment of its own, outside the checkout."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.distribution import NAME, VERSION, pip_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_build_has_the_name_that_the_messages_have() -> None:
    assert PROJECT["name"] == NAME
    assert pip_install() == "pip install curate-images"
    assert pip_install("s3", "ray") == "pip install 'curate-images[s3,ray]'"


def test_every_extra_that_is_mentioned_exists_and_has_our_name() -> None:
    """In messages and pages; `curate[...]` would install another project."""
    files = [file for folder in ("curate", "pipelines", "models", "docs") for file in (ROOT / folder).rglob("*")]
    texts = {file: file.read_text() for file in files if file.suffix in {".py", ".md", ".j2"}}
    texts[ROOT / "README.md"] = (ROOT / "README.md").read_text()
    named, extras = set[str](), set[str]()
    for file, text in texts.items():
        assert not re.search(r"(?<![\w-])curate\[", text), f"{file} names another project"
        assert not re.search(r"pip install ['\"]?curate(?![\w-])", text), f"{file} installs another project"
        named |= {each for found in re.findall(rf"{NAME}\[([\w,]+)\]", text) for each in found.split(",")}
        extras |= {
            each for found in re.findall(r"pip_install\(([^)]+)\)", text) for each in re.findall(r"'(\w+)'", found)
        }
    assert named and extras
    assert named | extras <= set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the commands of a new environment, into which the wheel made from the sdist was installed."""
    for name in ("hatchling", "pip"):
        if find_spec(name) is None:
            pytest.skip(f"{name}, which builds or installs the wheel, is not installed")
    home = tmp_path_factory.mktemp("installed")
    _build(ROOT, home, "sdist")
    (sdist,) = home.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(home, filter="data")
    unpacked = home / f"curate_images-{VERSION}"
    assert (unpacked / "mkdocs.yml").is_file() and (unpacked / "tests" / "conftest.py").is_file()
    _build(unpacked, home, "wheel")
    (wheel,) = home.glob(f"curate_images-{VERSION}-*.whl")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    _lend_libraries(python)
    return python.parent


def _build(source: Path, out: Path, target: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(out), "--target", target]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


def _lend_libraries(python: Path) -> None:
    """Let an environment import what is installed here: a second torch would take gigabytes and minutes.

    Python does not follow the .pth files of such a folder, so an editable installation of curate there stays unseen.
    """
    spec = find_spec("torch")
    assert spec and spec.origin
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(f"{Path(spec.origin).parents[1]}\n")


def _run(folder: Path, *command: str) -> str:
    """Run a command in a folder, with nothing of this checkout in its environment; returns its output."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_beside_folders_of_its_packages_names(installed: Path, tmp_path: Path) -> None:
    for name in ("models", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWNER = 'the user'\n")
    (tmp_path / "crawl").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "crawl" / f"{i}.png")
    curate, python = str(installed / "curate"), str(installed / "python")

    assert "ingest" in _run(tmp_path, curate, "--help")
    assert _run(tmp_path, curate, "--version") == f"curate {VERSION}\n"
    assert json.loads(_run(tmp_path, curate, "ingest", "crawl", "--json"))["images"] == 3
    assert json.loads(_run(tmp_path, python, "-m", "curate", "verify", "--json"))["problems"] == []
    assert json.loads(_run(tmp_path, python, "-m", "curate", "export", "--out", "clean", "--keep", "all", "--json"))
    assert (tmp_path / "clean" / "00000.tar").is_file()
    (site,) = installed.parent.glob("lib/python*/site-packages")
    static = Path("pipelines", "review", "static")  # no import tells whether a script is missing
    assert {file.name for file in (site / static).iterdir()} == {file.name for file in (ROOT / static).iterdir()}
    where = "import curate, pipelines; print(pipelines.__file__)"
    assert str(installed.parent / "lib") in _run(tmp_path, python, "-c", where)
    # and the user's packages stay his
    assert _run(tmp_path, python, "-c", "import models, pipelines; print(models.OWNER, pipelines.OWNER)") == (
        "the user the user\n"
    )
