"""Digests of everything that a small main job leaves, to show that a refactoring changes nothing.

    python tests/bench/digests.py --work WORK > after.txt        # with PYTHONPATH=OLD for another checkout
    diff before.txt after.txt

Makes the toy crawl, runs ingest, train (recipe `cpu`, 200 steps), score, inspect, export and verify as processes, and
prints a SHA-256 for each file. Two kinds of content are left out: times and paths, and the names of tensors, columns
and settings (a safetensors file is digested tensor by tensor, in the order of their digests).
"""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors import safe_open

NAMED = {"run.json", "scores.json", "README.md", "config.json", "classifier.pt2", "thresholds.json", "demo.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    work: Path = parser.parse_args().work.resolve()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    toy = "import sys; from pathlib import Path; from pipelines import toy; toy.make(Path(sys.argv[1]), num_real=600)"
    subprocess.run([sys.executable, "-c", toy, str(work)], check=True, env=environment)
    commands = (
        "ingest crawl",
        "train --labeled seed --config cpu --num-steps 200 --device cpu --validation test --truth truth.parquet",
        "score --max-false-positive-rate 0.2",
        "inspect --disagreement",
        "export --out clean --min-confidence 0.5 --drop-near-duplicates",
        "verify",
    )
    for command in commands:
        whole = [sys.executable, "-m", "curate", *command.split(), "--json"]
        subprocess.run(whole, check=True, env=environment, cwd=work, stdout=subprocess.DEVNULL)
    for path in sorted(path for path in work.rglob("*") if path.is_file()):
        if path.name not in NAMED and not path.name.endswith("_stats.json") and not path.name.startswith("."):
            print(digest(path), path.relative_to(work))


def digest(path: Path) -> str:
    """Hexadecimal digest of what a file holds."""
    found = hashlib.sha256()
    for part in content(path):
        found.update(part)
    return found.hexdigest()[:16]


def content(path: Path) -> Iterator[bytes]:
    """The bytes of a file; of tensors and tables their values."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(name).contiguous().flatten() for name in file.keys()]  # noqa: SIM118
        yield from sorted(hashlib.sha256(each.view(torch.uint8).numpy().tobytes()).digest() for each in tensors)
    elif path.suffix == ".parquet":
        yield repr(pq.read_table(path).to_pylist()).encode()
    else:
        yield path.read_bytes()


if __name__ == "__main__":
    main()
