"""How `curate review` bears a million images: start, views, searches, marks, the map, scrolling, and memory.

    python tests/bench/many_reviewed.py WORK [--images 1000000] [--width 128]

WORK gets a pool whose manifests, scores and embeddings are written as ingest and score write them; all images are one
file. The real command then serves it. With Chromium and playwright, a browser opens the page and scrolls. Seconds of
CPU are the server's, and hardly depend on what else the machine does.
"""

import argparse
import http.client
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from models.classifier import Classifier
from models.detector import Detector
from pipelines.pool.manifest import POOL_SCHEMA, Pool
from pipelines.run import model, scores, verdicts
from pipelines.storage.atomic import write_json

PER_SHARD = 10_000
CLASSES = tuple(f"class {number}" for number in range(20))
WORDS = ("red", "blue", "old", "small", "lighthouse", "cat", "dog", "bridge", "sea", "street", "market", "photo", "of")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128, help="of the embeddings")
    args = parser.parse_args()
    if not (args.work / "pool" / "run.json").exists():
        make(args.work, args.images // PER_SHARD, args.width)
    shutil.rmtree(args.work / "run" / "review", ignore_errors=True)
    (args.work / "run" / "marks.jsonl").unlink(missing_ok=True)
    measure(args.work)


def make(work: Path, num_shards: int, width: int) -> None:
    """Write the pool and the run."""
    for folder in ("pool/rejects", "run/scores", "run/embeddings"):
        (work / folder).mkdir(parents=True)
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=CLASSES, method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=0, pool="pool"
    )
    model.save(work / "run" / "model", config, Classifier("small", len(CLASSES)).eval(), Detector().eval())
    verdicts.save(work / "run", verdicts.choose([0.1] * 100, None))
    thresholds = verdicts.load(work / "run")
    offset, size = write_tar(work / "image.tar")
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((len(CLASSES), width))
    for number in range(num_shards):
        shard = f"{number:05d}"
        manifest(shard, rng, offset, size, work / "pool" / f"{shard}.parquet")
        write_json(work / "pool" / f"{shard}_stats.json", {"successes": PER_SHARD})
        (work / "pool" / f"{shard}.tar").hardlink_to(work / "image.tar")
        labels = rng.integers(0, len(CLASSES), PER_SHARD)
        prob = rng.beta(0.6, 1.2, PER_SHARD).astype(np.float32)
        table = scores_of(shard, labels, prob, thresholds.verdicts(prob))
        mark = {b"shard": Pool(work / "pool").digest(shard).encode()}
        pq.write_table(table.replace_schema_metadata(mark), work / "run" / "scores" / f"{shard}.parquet")
        vectors = centers[labels] + rng.standard_normal((PER_SHARD, width))
        np.save(work / "run" / "embeddings" / f"{shard}.npy", vectors.astype(np.float16))
    write_json(work / "pool" / "run.json", {"ingests": []})


def write_tar(path: Path) -> tuple[int, int]:
    """A tar with one JPEG; its offset and size."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)).save(out, "JPEG")
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("0.jpg")
        member.size = len(out.getvalue())
        tar.addfile(member, io.BytesIO(out.getvalue()))
    return 512, len(out.getvalue())


def manifest(shard: str, rng: np.random.Generator, offset: int, size: int, path: Path) -> None:
    words = rng.choice(WORDS, (PER_SHARD, 10))
    hosts = rng.zipf(1.5, PER_SHARD).clip(max=5000)
    domains = [f"site{host}.example" for host in hosts]
    values: dict[str, Any] = {
        "key": [f"{shard}{row:04d}" for row in range(PER_SHARD)],
        "shard": [shard] * PER_SHARD,
        "source": ["crawl"] * PER_SHARD,
        "member": [f"images/{row:06d}.jpg" for row in range(PER_SHARD)],
        "format": ["jpg"] * PER_SHARD,
        "width": [200] * PER_SHARD,
        "height": [160] * PER_SHARD,
        "offset": [offset] * PER_SHARD,
        "num_bytes": [size] * PER_SHARD,
        "sha256": [rng.bytes(32).hex() for _ in range(PER_SHARD)],
        "phash": rng.integers(0, 2**63, PER_SHARD),
        "caption": [" ".join(row) for row in words],
        "domain": domains,
        "url": [
            f"https://{host}/images/{i}/{row[0]}-{row[1]}.jpg"
            for i, (host, row) in enumerate(zip(domains, words, strict=True))
        ],
    }
    columns = [
        pa.array(values[field.name], field.type) if field.name in values else pa.nulls(PER_SHARD, field.type)
        for field in POOL_SCHEMA
    ]
    pq.write_table(pa.table(columns, schema=POOL_SCHEMA), path)


def scores_of(shard: str, labels: Any, prob: Any, called: Any) -> pa.Table:
    probs = np.full((PER_SHARD, len(CLASSES)), 0.2 / (len(CLASSES) - 1), dtype=np.float16)
    probs[np.arange(PER_SHARD), labels] = 0.8
    values = {
        "key": [f"{shard}{row:04d}" for row in range(PER_SHARD)],
        "prob_synthetic": prob,
        "synthetic": prob >= 0.5,
        "verdict": called,
        "pseudo_label": [CLASSES[label] for label in labels],
        "confidence": np.full(PER_SHARD, 0.8, dtype=np.float32),
        "probs": list(probs),
        "raw_confidence": np.full(PER_SHARD, 0.8, dtype=np.float32),
        "typicality": pa.nulls(PER_SHARD, pa.float32()),
    }
    return pa.table([pa.array(values[field.name], field.type) for field in scores.SCORE_SCHEMA], scores.SCORE_SCHEMA)


class Client:
    """The page's requests, timed."""

    def __init__(self, url: str, pid: int) -> None:
        self._pid, parts = pid, urlsplit(url)
        self._connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=600)
        self.own = {"origin": f"http://127.0.0.1:{parts.port}", "content-type": "application/json"}
        _, headers, _ = self._ask("GET", f"/?{parts.query}")
        self.own["cookie"] = headers["set-cookie"].partition(";")[0]

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, Any, bytes]:
        self._connection.request(method, path, body, self.own)
        answer = self._connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def timed(self, what: str, path: str, body: Any = None) -> bytes:
        """Ask, and say how long it took."""
        start, before = time.perf_counter(), cpu(self._pid)
        method, text = ("GET", None) if body is None else ("POST", json.dumps(body))
        status, _, content = self._ask(method, path, text)
        took = f"{time.perf_counter() - start:8.3f} s, {cpu(self._pid) - before:6.2f} of CPU"
        print(f"{what:44} {took}  {len(content):>10,} bytes  {status}", flush=True)
        return content


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    now, top, anonymous = (
        int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024
        for name in ("VmRSS", "VmHWM", "RssAnon")  # type: ignore[index]
    )
    return f"{now:,.0f} MiB resident, of it {anonymous:,.0f} not mapped files; {top:,.0f} at the highest"


def measure(work: Path) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "curate", "review", "--no-open", "--port", "0"]
    command += ["--pool", str(work / "pool"), "--run", str(work / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        took = f"{time.perf_counter() - start:.1f} s, {cpu(process.pid):.1f} of CPU"
        print(f"start: {took}; {memory(process.pid)}", flush=True)
        try:
            requests(Client(url, process.pid))
            print(memory(process.pid), flush=True)
            browse(url)
            print(memory(process.pid), flush=True)
        finally:
            process.kill()


def requests(client: Client) -> None:
    client.timed("first view", "/api/view?marked=no")
    client.timed("its histogram", "/api/histogram?marked=no")
    client.timed("unsure, class 3", "/api/view?verdict=unsure&label=class%203")
    client.timed("most synthetic first", "/api/view?order=synthetic")
    client.timed("most synthetic first, again", "/api/view?order=synthetic")
    client.timed("200 rows described", "/api/rows?rows=" + ",".join(map(str, range(0, 400_000, 2_000))))
    client.timed("an image with its neighbors", "/api/image/000010005")
    for text in ("lighthouse", "lighthouse", "red lighthouse domain:site7.example", "caption:bridge", "key:00005123"):
        client.timed(f"search {text}", f"/api/view?text={quote(text)}")
    client.timed("the map", "/api/map")
    client.timed("within an outline", "/api/view?region=" + quote("300,300 700,300 700,700 300,700"))
    wanted = {"verdict": "unsure", "label": "class 3"}
    rows = len(client.timed("to be marked", "/api/view?verdict=unsure&label=class%203")) // 4
    client.timed(f"mark {rows:,}", "/api/marks/all", {"wanted": wanted, "count": rows, "verdict": "skip"})
    client.timed("undo", "/api/undo", {})


def browse(url: str) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no Chromium: not scrolled")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        start = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("#cell-0 img")
        print(f"{'browser: first images':44} {time.perf_counter() - start:8.3f} s")
        frames = page.evaluate(
            """async () => {
                const grid = document.getElementById('grid'), times = [];
                for (let i = 0; i < 120; i++) {
                    const before = performance.now();
                    grid.scrollTop += 90;
                    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                    times.push((performance.now() - before) / 2);
                }
                return times;
            }"""
        )
        print(
            f"browser: a frame while scrolling {statistics.median(frames):.1f} ms, 95 % {np.percentile(frames, 95):.1f}"
        )
        start = time.perf_counter()
        page.keyboard.press("End")
        page.wait_for_selector(f"#cell-{int(page.evaluate('document.body.dataset.total')) - 1} img")
        print(f"{'browser: the last image, by End':44} {time.perf_counter() - start:8.3f} s")
        start = time.perf_counter()
        page.keyboard.press("m")
        page.wait_for_function("() => document.getElementById('map-said').textContent.includes('variance')")
        print(f"{'browser: the map':44} {time.perf_counter() - start:8.3f} s")


if __name__ == "__main__":
    main()
