"""A pool that would do harm, and its report."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.classifier import Classifier
from models.detector import Detector
from models.recipe import Recipe
from pipelines import ingest, report, score, toy, train
from pipelines.report import Summary
from pipelines.run import model
from pipelines.storage.atomic import write_json
from tests.pipelines.report.reports import CLASSES, EVIL, settings


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored pool, its run and its labeled set; file names, captions, a class and a reject's name are hostile."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    toy.make(root, num_real=1, alpha=0, labels_per_class=4, num_test=150)
    with tarfile.open(root / "crawl.tar", "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for i, file in enumerate(sorted((root / "test").glob("*/*.jpg"))):
            add(f"{i:03d}{EVIL}.jpg", file.read_bytes())
            add(f"{i:03d}{EVIL}.txt", b"</span><script>alert(3)</script>")
            add(f"{i:03d}{EVIL}.json", json.dumps({"url": f"https://evil{i % 3}.invalid/<b>"}).encode())
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(out, "PNG")
        add("photo.png", out.getvalue())
        add(f"empty{EVIL}.jpg", b"")
        add(f"page{EVIL}.jpg", b"<html><script>alert(4)</script>")
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl.tar"),), pool=root / "pool", jobs=1))
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=CLASSES, method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=40,
        pool="pool",
    )  # fmt: skip
    model.save(root / "run" / "model", config, Classifier("small", len(CLASSES)).eval(), Detector().eval())
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))
    training = train.TrainConfig(
        labeled=root / "seed", pool=root / "pool", run=root / "run", recipe=Recipe(num_steps=40)
    )
    write_json(
        root / "run" / "run.json",
        {
            "config": training.model_dump(mode="json"),
            "versions": {"torch": "2.0"},
            "summary": {"seconds": 1.0, "alarms": ["Something can be mended."]},
        },
    )
    lines = [
        {"step": step, "sup_real": 9 / step, "queue_score": 0.5, "dummy_share": 0.1, "pseudo_label_share/0": 0.2}
        for step in range(10, 50, 10)
    ]
    (root / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5')
    return root


@pytest.fixture(scope="session")
def written(home: Path) -> Summary:
    return report.run(settings(home))


@pytest.fixture(scope="session")
def page(written: Summary) -> str:
    return Path(written.out).read_text(encoding="utf-8")
