"""One tar of very many members: what reading it and ingesting it take. Run by hand:

    python tests/bench/many_members.py --members 1000000 [--ingest]

Members are small PNGs, no two alike. Peaks are those of the resident memory of the process, and with `--ingest` of its
worker too, less what both have before they start. Prints one JSON object.
"""

import argparse
import io
import json
import resource
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from pipelines import ingest
from pipelines.ingest.records import read
from pipelines.ingest.sources import TarUnit


def png(number: int) -> bytes:
    """A grey PNG of 16x16 that holds `number`."""
    rows = b"".join(b"\0" + bytes((number * (row + 1) >> shift) & 255 for shift in range(16)) for row in range(16))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = b"\0\0\0\x10\0\0\0\x10\x08\0\0\0\0"
    chunks = [(b"IHDR", header), (b"tEXt", b"n\0%d" % number), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def lay_out(path: Path, num_members: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(num_members):
            content = png(number)
            info = tarfile.TarInfo(f"{number:09d}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            tar.members.clear()  # tarfile remembers them all
    return path


def peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--ingest", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tar = lay_out(Path(folder) / "many.tar", arguments.members)
        found: dict[str, Any] = {"members": arguments.members, "tar_bytes": tar.stat().st_size}
        unit = TarUnit(source=str(tar), part="", fingerprint="", num_bytes=0)
        before, started = peak(resource.RUSAGE_SELF), time.process_time()
        assert sum(1 for _ in read(unit, 1 << 28)) == arguments.members
        found["read"] = {
            "cpu_us_a_member": round((time.process_time() - started) / arguments.members * 1e6, 1),
            "mib": (peak(resource.RUSAGE_SELF) - before) >> 20,
        }
        if arguments.ingest:
            before = peak(resource.RUSAGE_SELF)
            summary = ingest.run(ingest.IngestConfig(sources=(str(tar),), pool=Path(folder) / "pool", jobs=1))
            found["ingest"] = {
                "kept": summary.kept,
                "seconds": summary.seconds,
                "parent_mib": (peak(resource.RUSAGE_SELF) - before) >> 20,
                "worker_mib": peak(resource.RUSAGE_CHILDREN) >> 20,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
