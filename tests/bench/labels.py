"""Are labels as often right as curate says? Seeds against the truth, on the features of a frozen backbone.

    python tests/bench/labels.py cifar --labels 10 --work /tmp/labels

`photos` are the photographs of photos-224.parquet, `cifar` are 2,000 images of CIFAR-10, enlarged to the backbone's
input. Their features (the image, a weak and a strong view) are computed once. No image is synthetic, as the figures are
about real images. A seed draws labeled images, trains and cross-fits by the code of `curate train`, and judges what
would be said of the others, the pool. With `--others 2` two of the ten classes are in the pool alone: a fifth of it is
of none of the labeled classes. With `--marks 100` it compares labels in the order of `review --order labels` with
as many random ones. It prints a line of JSON for each seed, then the means.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from curate.config import resolve
from models import augment, calibration
from models.frozen import Frozen
from models.panel import Panel
from models.ranks import Rng
from models.routed import Prior
from pipelines.images.views import Views
from pipelines.pool.labeled import Labeled
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.review import order
from pipelines.run import labels, weights
from pipelines.train import TrainConfig, crossfit
from pipelines.train.data import Data
from pipelines.train.marked import Training

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = {"photos": ("photos-224.parquet", 100), "cifar": ("cifar10-train.parquet", 200)}
NUM_CLASSES = 10
BATCH = 32


def features(name: str, work: Path) -> tuple[Tensor, Tensor]:
    """Features (N, 1 + 2V, D) of the views of all images, and their classes (N,); kept in `work`."""
    kept = work / f"{name}.pt"
    if kept.exists():
        found = torch.load(kept, weights_only=True)
        return found["images"], found["cls"]
    file, per_class = FILES[name]
    table, rng = pq.read_table(DATA / file, columns=["cls", "jpg"]), np.random.default_rng(0)
    of_class = table["cls"].to_numpy()
    rows = [rng.permutation(np.flatnonzero(of_class == k))[:per_class] for k in range(NUM_CLASSES)]
    chosen = rng.permutation(np.concatenate(rows))
    frozen = Frozen(weights.EMBEDDED, weights.embedded_weights(weights.EMBEDDED) or {}, 224)
    parts, views = [], Rng(torch.Generator().manual_seed(0))
    content = table.take(chosen)["jpg"].to_pylist()
    for start in range(0, len(content), BATCH):
        opened = [Image.open(io.BytesIO(each)).convert("RGB") for each in content[start : start + BATCH]]
        pixels = np.stack([np.asarray(each.resize((224, 224), Image.Resampling.BICUBIC)) for each in opened])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        seen = (images, augment.weak(images, views), augment.strong(images, views))
        parts.append(torch.stack([frozen(each).pooled for each in seen], 1).half())
    work.mkdir(parents=True, exist_ok=True)
    torch.save({"images": torch.cat(parts), "cls": torch.from_numpy(of_class[chosen]).long()}, kept)
    return torch.cat(parts), torch.from_numpy(of_class[chosen]).long()


def error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error over fifteen bins of equally many images."""
    parts = confidence.argsort(stable=True).tensor_split(15)
    return sum(len(p) * abs(float(confidence[p].mean() - right[p].double().mean())) for p in parts) / len(right)


class Draw:
    """One seed: what is labeled, what is in the pool, and what training makes of it."""

    def __init__(self, images: Tensor, cls: Tensor, config: TrainConfig, labels_per_class: int, others: int) -> None:
        rng = torch.Generator().manual_seed(100 + config.seed)
        self.images, self.config = images, config
        shuffled = torch.randperm(len(cls), generator=rng)
        classes = sorted(torch.randperm(NUM_CLASSES, generator=rng)[: NUM_CLASSES - others].tolist())
        number = torch.full((NUM_CLASSES,), -1)
        number[classes] = torch.arange(len(classes))
        self.truth, self.num_classes = number[cls], len(classes)
        self.labeled = torch.cat([shuffled[cls[shuffled] == k][:labels_per_class] for k in classes])

    @property
    def pool(self) -> Tensor:
        others = torch.ones(len(self.truth), dtype=torch.bool)
        others[self.labeled] = False
        return torch.nonzero(others).squeeze(1)

    def _data(self) -> tuple[Data, Views, Prior]:
        nothing = torch.zeros(len(self.labeled), 2)
        examples = Labeled(
            Views(self.images[self.labeled], nothing),
            self.truth[self.labeled],
            tuple(map(str, range(self.num_classes))),
            tuple(map(str, self.labeled.tolist())),
        )
        silent = Panel({"nothing": 1})  # it calls no image synthetic
        of_pool = Views(self.images[self.pool], torch.zeros(len(self.pool), 2))
        prior = Prior(silent, silent.score(of_pool.tiles), 0.0, (0.0, 0.0))
        rows = Rows(Pool(Path()), np.empty(0), np.empty(0), np.empty(0), np.empty(0))
        return Data(rows.pool, Training(examples, rows), None, None, None), of_pool, prior

    def train(self) -> Tensor:
        """Logits (N, K) of the pool by a classifier that was trained on all labels."""
        data, of_pool, prior = self._data()
        examples = data.training.examples
        own = examples.views.images, examples.labels
        classifier = crossfit.fitted(self.config, data, own, of_pool.images, prior)
        with torch.no_grad():
            return classifier(of_pool.images).real

    def judge(self) -> tuple[Any, labels.OfPool, Tensor]:
        """Evidence of training, what scoring finds, and whether (N,) each label of the pool is right."""
        data, of_pool, prior = self._data()
        evidence, of_labels = crossfit.better(self.config, data, of_pool, prior, lambda tick: None)
        if of_labels is not None:
            recipe = self.config.recipe.model_copy(update={"method": "supervised"})
            self.config = self.config.model_copy(update={"recipe": recipe})
        logits = self.train()
        right = logits.argmax(1) == self.truth[self.pool]
        raw, typicality = logits.softmax(1).amax(1), evidence.typicality(of_pool.images[:, 0].float())
        return evidence, labels.OfPool(evidence.calibration.probs(logits), raw, typicality), right


def figures(draw: Draw) -> dict[str, float]:
    """What is said of the labels, and what is true."""
    evidence, of_pool, right = draw.judge()
    names = tuple(map(str, range(draw.num_classes)))
    said = labels.measure(evidence, names, of_pool)
    inside = draw.truth[draw.pool] >= 0
    sure = of_pool.probs.amax(1)
    low, high = said.accuracy_interval
    true = float(right[inside].double().mean())
    found: dict[str, float] = {
        "alone": float(draw.config.recipe.method == "supervised"),
        "accuracy": true, "said": said.accuracy, "width": high - low, "held": float(low <= true <= high),
        "ece": error(sure[inside], right[inside]), "ece_raw": error(of_pool.raw_confidence[inside], right[inside]),
        "ece_held": float(said.calibration_error_interval[1] >= error(sure[inside], right[inside])),
        "none": 1 - float(inside.double().mean()), "none_at_least": said.none_at_least or 0.0,
        "none_estimate": said.none_estimate or 0.0, "temperature": said.temperature,
    }  # fmt: skip
    near, own_near = of_pool.typicality > labels.FAR, evidence.typicality_of_own > labels.FAR
    mix = torch.tensor([each.pool_share for each in said.classes], dtype=torch.float64)
    mine = calibration.weigh(evidence.labels, mix)[own_near]
    sure_L = evidence.calibration.probs(evidence.logits).amax(1)[own_near]
    for asked in (0.9, 0.95):
        at = calibration.limit(sure_L, evidence.right[own_near], mine, precision=asked, level=0.9).confidence
        out = near & (sure >= at) & inside if at is not None else torch.zeros_like(near)
        found |= {
            f"out_{asked}": int(out.sum()) / int(inside.sum()),
            f"precision_{asked}": float(right[out].double().mean()) if out.any() else float("nan"),
            f"held_{asked}": float(not out.any() or float(right[out].double().mean()) >= asked),
        }
    return found


def marks(draw: Draw, count: int) -> dict[str, float]:
    """Accuracy after `count` more labels: in the order of review, and at random (two draws)."""
    evidence, of_pool, right = draw.judge()
    rng = torch.Generator().manual_seed(draw.config.seed)
    pool, before = draw.pool, draw.labeled
    embeddings = draw.images[pool, 0].float().numpy()
    chosen: dict[str, Sequence[int]] = {
        "ordered": order.to_label(
            order.margin_doubt(of_pool.probs.numpy()),
            np.ones(len(pool), dtype=bool),
            lambda: [embeddings],
            evidence.references.numpy(),
        )[:count].tolist(),
        "random": torch.randperm(len(pool), generator=rng)[:count].tolist(),
        "random again": torch.randperm(len(pool), generator=rng)[:count].tolist(),
    }
    found = {"before": float(right.double().mean())}
    for name, rows in chosen.items():
        draw.labeled = torch.cat((before, pool[list(rows)]))
        found[name] = float((draw.train().argmax(1) == draw.truth[draw.pool]).double().mean())
        draw.labeled = before
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sorted(FILES))
    parser.add_argument("--labels", type=int, default=10, help="of each class")
    parser.add_argument("--others", type=int, default=0, help="classes that are in the pool alone")
    parser.add_argument("--marks", type=int, default=0, help="further labels, by order or at random")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images, cls = features(given.set, given.work)
    flags = {
        "labeled": given.work, "run": given.work / "run", "machine.device": "cpu", "machine.precision": "fp32",
        "network.frozen": True, "network.views": (images.shape[1] - 1) // 2, "recipe.num_steps": given.steps,
    }  # fmt: skip
    results = []
    for seed in range(given.seeds):
        config = resolve(TrainConfig, flags | {"seed": seed}, "photographs")
        draw = Draw(images, cls, config, given.labels, given.others)
        results.append(marks(draw, given.marks) if given.marks else figures(draw))
        print(json.dumps({name: round(value, 4) for name, value in results[-1].items()}), flush=True)
    names = results[0]
    means = {name: [each[name] for each in results if not np.isnan(each[name])] for name in names}
    print("mean", json.dumps({name: round(float(np.mean(each)), 4) for name, each in means.items() if each}))


if __name__ == "__main__":
    main()
