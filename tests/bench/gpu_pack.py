"""Fills a folder with what `gpu.sh` carries to a machine that has a GPU and PyTorch, but no network.

    python tests/bench/gpu_pack.py carried [--real CIFAR10 --synthetic SD14 --test CIFAR10_TEST] [--python 3.12]

The folder must not exist. It gets wheels for Linux on x86-64, of the versions that are installed here, of all that
curate needs for these parts and that `--there` does not name; and, where sources are given, `arrays.npz` of
`train_matrix.py`. Raises SystemExit where they take more than `--limit` MiB. The repository itself goes there as well.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# With what they need themselves. Images of PyTorch for data science hold these; `--there` says otherwise.
THERE = (
    "torch", "torchvision", "timm", "numpy", "pillow", "pyarrow", "pytest", "safetensors", "huggingface-hub", "fsspec",
    "jinja2", "rich", "typer",
)  # fmt: skip
NOT_USED = ("duckdb", "faiss-cpu", "starlette", "uvicorn", "webdataset")  # by export, review and index alone
GLIBC = (5, 12, 17, 24, 27, 28, 31, 34, 35, 39)  # 2.N, of the tags of wheels


def wanted(there: set[str]) -> dict[str, str]:
    """Version of each package to carry, by name."""
    found: dict[str, str] = {}
    waiting = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in there or name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.version(name)
        waiting += importlib.metadata.requires(name) or []
    return found


def download(folder: Path, packages: dict[str, str], python: str) -> None:
    """Download the wheels; what pip says of a missing one goes to standard error."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={version}" for name, version in packages.items())], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("real", "synthetic", "test"):
        parser.add_argument(f"--{name}", type=Path, help="source of images, as `curate benchmark` takes it")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--there", nargs="*", default=THERE, help="packages of that machine")
    parser.add_argument("--limit", type=float, default=56, help="of the folder, in MiB; the repository takes 5 more")
    args = parser.parse_args()
    if args.folder.exists():
        raise SystemExit(f"{args.folder}: is there already. Remove it, or name another folder.")
    args.folder.mkdir(parents=True)
    packages = wanted({canonicalize_name(name) for name in (*args.there, *NOT_USED)})
    download(args.folder, packages, args.python)
    if args.real:
        sources = [word for name in ("real", "synthetic", "test") for word in (f"--{name}", str(getattr(args, name)))]
        script = [sys.executable, str(ROOT / "tests" / "bench" / "train_matrix.py"), "--pack"]
        subprocess.run([*script, *sources, "--arrays", str(args.folder / "arrays.npz")], check=True)
    size = sum(path.stat().st_size for path in args.folder.iterdir()) / 2**20
    print(f"{args.folder}: {size:.1f} MiB; wheels of {', '.join(sorted(packages))}")
    if size > args.limit:
        raise SystemExit(f"{args.folder}: takes more than {args.limit:g} MiB. Name more packages with --there.")


if __name__ == "__main__":
    main()
