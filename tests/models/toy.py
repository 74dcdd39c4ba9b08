"""What the tests of the methods share: a network without batch norm, random views, and pictures to train on."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from models import methods
from models.batch import Batch, Views
from models.classifier import Classifier, Heads
from models.detector import Detector
from models.marked import Marked
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.rsmatch import RSMatch

NUM_POOL = 128


class Plain(Classifier):
    """A classifier without batch norm, so that a reference may forward the views one by one."""

    def __init__(self, num_classes: int = 4) -> None:
        nn.Module.__init__(self)
        self.num_features = 6
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.Tanh())
        self.real = nn.Linear(6, num_classes)
        self.dummy = nn.Linear(6, num_classes)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        features: Tensor = self.backbone(images_BCHW.float() / 64)
        return features

    def forward(self, images_BCHW: Tensor) -> Heads:
        features = self.embed(images_BCHW)
        return Heads(self.real(features) * 4, self.dummy(features) * 4)


def random_views(seed: int = 0) -> tuple[Views, Tensor]:
    """Random views of 5 labeled and 12 unlabeled 8x8 images of 4 classes, and a route (12,) for these."""
    rng = torch.Generator().manual_seed(seed)
    labeled, weak, strong = (
        torch.randint(0, 256, (count, 3, 8, 8), generator=rng, dtype=torch.uint8) for count in (5, 12, 12)
    )
    labels = torch.randint(4, (5,), generator=rng)
    return Views(labeled, labels, weak, strong, torch.arange(12)), torch.rand(12, generator=rng) < 0.5


def pictures(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Bright against dark classes of 16x16 pictures: labeled (16, 3, 16, 16), labels (16,) and a pool."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(16) % 2
    base = 60 + 120 * torch.cat((labels, torch.randint(2, (NUM_POOL,), generator=rng)))
    pixels = base[:, None, None, None] + 40 * torch.randn(16 + NUM_POOL, 3, 16, 16, generator=rng)
    pixels = pixels.clamp(0, 255).to(torch.uint8)
    return pixels[:16], labels, pixels[16:]


def build(marked: Marked | None = None, num_outputs: int = 2, **settings: Any) -> methods.Method:
    """A method around small networks; `settings` are of the recipe and of the controls. No bootstrap by default."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_steps": 300, "warmup": 0.0, "detector_init": "random", "norm_momentum": 0.05, "queue_length": 8,
        "queue_classes": 2,
    }  # fmt: skip
    settings = defaults | settings
    recipe = Recipe(**{name: value for name, value in settings.items() if name not in Controls.model_fields})
    controls = Controls(**{name: value for name, value in settings.items() if name in Controls.model_fields})
    classifier = Classifier("small", num_outputs)
    detector = Detector(
        (4, 8),
        equalize=recipe.equalize_spectrum,
        residual_planes=controls.residual_planes,
        residual_features=controls.residual_features,
    )
    return methods.build(recipe, controls, classifier, detector, nullcontext(), num_images=NUM_POOL, marked=marked)


def build_rsmatch(marked: Marked | None = None, num_outputs: int = 2, **settings: Any) -> RSMatch:
    """The same where the method is RSMatch."""
    method = build(marked, num_outputs, **settings)
    assert isinstance(method, RSMatch)
    return method


def batch_of(rows: Tensor) -> Batch:
    """A batch of all labeled pictures and these of the pool, every third of which is said to be synthetic."""
    labeled, labels, pool = pictures()
    return Batch(labeled, labeled, labels, pool[rows], pool[rows], rows, synthetic=rows % 3 == 0)


def rows_of(step: int) -> Tensor:
    """Rows (24,) of the pool that `train` takes in a step."""
    return torch.randint(NUM_POOL, (24,), generator=torch.Generator().manual_seed(step))


def train(method: methods.Method, steps: range) -> list[dict[str, Tensor]]:
    """Train on the pictures; the figures of each step."""
    pool = pictures()[2]
    result = []
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        rows = torch.randint(NUM_POOL, (24,), generator=rng)  # as `rows_of`
        result.append(method.step(step, batch_of(rows), lambda picked: pool[picked], Rng(rng)))
    return result


def accuracy(method: methods.Method) -> float:
    """Share of other pictures that the averaged classifier gets right."""
    labeled, labels, _ = pictures(seed=1)
    return float((method.classifier.average(labeled).real.argmax(1) == labels).float().mean())
