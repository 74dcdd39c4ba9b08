"""FixMatch's training step as the field's repositories write it: what `train_step.py` measures ours against.

The design is that of kekmodel/FixMatch-pytorch and microsoft/Semi-supervised-learning, the code is written anew: each
view is made by PIL and torchvision for one image at a time, three float batches become one graph in fp32 and NCHW, and
a Python loop over the state dict keeps the average. Single measures of ours can be switched on to see what each brings.
"""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from models import augment
from models.backbones import IMAGENET_MEAN, IMAGENET_STD, Standardize, backbone
from models.learner import cosine
from models.ranks import Rng

NUM_CLASSES = 10
UNLABELED_RATIO = 7  # unlabeled images for each labeled one
THRESHOLD = 0.95
EMA_DECAY = 0.999
MANY = 2**40  # samples of a loader that nobody reads to its end

Operation = Callable[[Image.Image, float, int], Image.Image]  # (image, level in 0.1..0.9, sign)


def _affine(a: float, b: float, c: float, d: float, e: float, f: float, image: Image.Image) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f))


OPERATIONS: tuple[Operation, ...] = (
    lambda image, level, sign: ImageOps.autocontrast(image),
    lambda image, level, sign: ImageEnhance.Brightness(image).enhance(0.05 + 0.9 * level),
    lambda image, level, sign: ImageEnhance.Color(image).enhance(0.05 + 0.9 * level),
    lambda image, level, sign: ImageEnhance.Contrast(image).enhance(0.05 + 0.9 * level),
    lambda image, level, sign: ImageOps.equalize(image),
    lambda image, level, sign: image,
    lambda image, level, sign: ImageOps.posterize(image, int(4 * level) + 4),
    lambda image, level, sign: image.rotate(30 * sign * level),
    lambda image, level, sign: ImageEnhance.Sharpness(image).enhance(0.05 + 0.9 * level),
    lambda image, level, sign: _affine(1, 0.3 * sign * level, 0, 0, 1, 0, image),
    lambda image, level, sign: _affine(1, 0, 0, 0.3 * sign * level, 1, 0, image),
    lambda image, level, sign: ImageOps.solarize(image, 256 - int(256 * level)),
    lambda image, level, sign: _affine(1, 0, 0.3 * sign * level * image.width, 0, 1, 0, image),
    lambda image, level, sign: _affine(1, 0, 0, 0, 1, 0.3 * sign * level * image.height, image),
)


class RandAugmentCutout:
    """Two random operations, each with probability 1/2 and at a random level, then a gray square of half the side."""

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation in random.choices(OPERATIONS, k=2):
            level, sign = random.randint(1, 9) / 10, random.choice((-1, 1))
            if random.random() < 0.5:
                image = operation(image, level, sign)
        return self._cutout(image.copy())

    @staticmethod
    def _cutout(image: Image.Image) -> Image.Image:
        width, height = image.size
        left = int(max(0, random.uniform(0, width) - width / 4))
        top = int(max(0, random.uniform(0, height) - height / 4))
        right, bottom = min(width, left + width // 2) - 1, min(height, top + height // 2) - 1
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), (augment.GREY,) * 3)
        return image


class Views(Dataset[tuple[Any, ...]]):
    """Uint8 images (N, H, W, 3) in memory, one at a time through PIL: (weak, label) or (weak, strong)."""

    def __init__(self, images: np.ndarray, labels: list[int] | None) -> None:
        side = images.shape[1]
        shift = [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(side, padding=side // 8, padding_mode="reflect"),
        ]
        normalize = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.images, self.labels = images, labels
        self.weak = transforms.Compose([*shift, *normalize])
        self.strong = transforms.Compose([*shift, RandAugmentCutout(), *normalize])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        image = Image.fromarray(self.images[row])
        return self.weak(image), self.strong(image) if self.labels is None else self.labels[row]


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What both steps train on; the class of an image is its row modulo the number of classes."""

    images: Tensor  # (N, 3, H, W) uint8, on the device
    labels: Tensor  # (N,) int64, on the device
    batch_size: int  # labeled images of a step

    @property
    def num_unlabeled(self) -> int:
        """Unlabeled images of a step."""
        return self.batch_size * UNLABELED_RATIO


class Reference:
    """Network, average, optimizer and loaders; `train` does one step each time that it is asked for more.

    `batched` augments uint8 batches on the device as ours does, in place of the loaders.
    """

    def __init__(
        self,
        data: Data,
        *,
        workers: int = 0,
        channels_last: bool = False,
        autocast: AbstractContextManager[object] = nullcontext(),
        batched: bool = False,
    ) -> None:
        self.data, self.workers, self.batched = data, workers, batched
        images = data.images.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        self.labeled, self.unlabeled = Views(images, data.labels.tolist()), Views(images, None)
        self.device = data.images.device
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.autocast = autocast
        features, width = backbone("wrn-28-2")
        self.standardize = Standardize().to(self.device)
        self.network = nn.Sequential(features, nn.Linear(width, NUM_CLASSES)).train()
        self.network.to(self.device).to(memory_format=self.format)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.001
        self.average = copy.deepcopy(self.network)
        weights = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.network.parameters() if parameter.ndim <= 1]
        groups = [{"params": weights, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=0.03, momentum=0.9, nesterov=True)

    def train(self) -> Iterator[None]:
        """Train without end."""
        batches = self._augmented_batches() if self.batched else self._loaded_batches()
        for step, (labeled, labels, weak, strong) in enumerate(batches):
            self._step(step, labeled, labels, weak, strong)
            yield

    def _step(self, step: int, labeled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor) -> None:
        inputs = torch.cat((labeled, weak, strong)).contiguous(memory_format=self.format)
        with self.autocast:
            logits = self.network(inputs).float()
        logits_labeled, logits_weak, logits_strong = logits.split((len(labeled), len(weak), len(strong)))
        supervised = F.cross_entropy(logits_labeled, labels)
        confidence, pseudo_labels = logits_weak.detach().softmax(1).max(1)
        mask = (confidence >= THRESHOLD).float()
        unsupervised = (F.cross_entropy(logits_strong, pseudo_labels, reduction="none") * mask).mean()

        self.optimizer.zero_grad()
        (supervised + unsupervised).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(step, 2**20, 0.03)
        self.optimizer.step()
        self._update_average()
        self.figures = supervised.item(), unsupervised.item(), mask.mean().item()  # logged at each step, as they do

    @torch.no_grad()
    def _update_average(self) -> None:
        average, parameters = self.average.state_dict(), dict(self.network.named_parameters())
        for name, value in self.network.state_dict().items():
            if name in parameters:
                average[name].copy_(average[name] * EMA_DECAY + (1 - EMA_DECAY) * value)
            else:
                average[name].copy_(value)

    def _loaded_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        labeled = self._loader(self.labeled, self.data.batch_size)
        unlabeled = self._loader(self.unlabeled, self.data.num_unlabeled)
        for (images, labels), (weak, strong) in zip(labeled, unlabeled, strict=True):
            yield tuple(part.to(self.device) for part in (images, labels, weak, strong))

    def _loader(self, views: Views, size: int) -> DataLoader[tuple[Any, ...]]:
        return DataLoader(
            views,
            size,
            sampler=RandomSampler(views, replacement=True, num_samples=MANY),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _augmented_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        images, labels = self.data.images, self.data.labels
        rng = Rng(torch.Generator(self.device).manual_seed(0))
        while True:
            rows = rng.integers(0, len(images), self.data.batch_size)
            unlabeled = images[rng.integers(0, len(images), self.data.num_unlabeled)]
            views = augment.weak(images[rows], rng), augment.weak(unlabeled, rng), augment.strong(unlabeled, rng)
            labeled, weak, strong = (self.standardize(view) for view in views)
            yield labeled, labels[rows], weak, strong
