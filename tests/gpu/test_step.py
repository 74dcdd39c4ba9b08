"""The training step on a GPU: batch statistics, views and CUDA graphs against what they stand in for."""

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from models import augment, methods, norms
from models.augment import OPERATIONS, Draw
from models.batch import Batch
from models.classifier import Classifier
from models.detector import Detector
from models.marked import Marked
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.rsmatch import DETECTOR_SETTLES
from tests.models import toy

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

GROUPS = torch.tensor([norms.REAL, norms.SYNTHETIC, norms.AS_TESTED, norms.REAL] * 8)


def pictures(count: int, side: int = 32) -> Tensor:
    """Soft pictures (N, 3, S, S) uint8 with some noise: an operation may do more to noise alone than to a picture."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=rng) * 200 + 20
    values = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (values + 6 * torch.randn(count, 3, side, side, generator=rng)).clamp(0, 255).to(torch.uint8)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm())


def apart(
    classifier: Classifier, device: torch.device, precision: str, *, by_mask: bool | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Real logits, gradients and running statistics after one pass of 32 images of three groups."""
    classifier = classifier.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        heads = norms.apart(classifier, pictures(32).to(device), GROUPS.to(device), by_mask=by_mask)
    learned = (norms.AS_TESTED != GROUPS).to(device)
    (heads.real[learned, 0].sin().sum() + heads.dummy[learned].square().mean()).backward()
    gradients = [parameter.grad.flatten() for parameter in classifier.parameters() if parameter.grad is not None]
    statistics = [buffer.flatten() for name, buffer in classifier.named_buffers() if "running" in name]
    return heads.real.detach(), torch.cat(gradients), torch.cat(statistics)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["small", "wrn-28-2", "timm:resnet18"])
@pytest.mark.parametrize("by_mask", [False, True], ids=["parts", "masks"])
def test_one_pass_is_as_exact_as_a_pass_for_each_group(
    name: str, precision: str, by_mask: bool, device: torch.device
) -> None:
    torch.manual_seed(0)
    network = Classifier(name, 3)
    passes, masked = copy.deepcopy(network), copy.deepcopy(network)
    norms.split_all(masked)
    exact = apart(network, torch.device("cpu"), "fp32")
    whole, by_pass = apart(masked, device, precision, by_mask=by_mask), apart(passes, device, precision)
    for what, found, other, truth in zip(("logits", "gradients", "statistics"), whole, by_pass, exact, strict=True):
        assert found.isfinite().all(), what
        assert distance(found, truth) < 2 * distance(other, truth) + 0.01, what


def test_networks_on_a_gpu_get_split_norms_and_those_on_a_cpu_do_not(device: torch.device) -> None:
    network = Classifier("small", 2).to(device)
    norms.split(network)
    assert any(isinstance(module, norms.SplitBatchNorm) for module in network.modules()) == (device.type == "cuda")


# Views.


@dataclass(frozen=True)
class OnCpu(Rng):
    """Draws on the CPU, so that two devices get the same numbers."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def uniform(self, count: int) -> Tensor:
        return Rng.uniform(self, count).to(self.device)

    def integers(self, low: int, high: int, count: int) -> Tensor:
        return Rng.integers(self, low, high, count).to(self.device)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_pixels_that_a_cpu_gives(name: str, sign: float, device: torch.device) -> None:
    images = pictures(18)
    count = len(images)
    level = torch.arange(count).remainder(9).add(1) / 10
    chosen = Draw(torch.full((count,), OPERATIONS.index(name)), level, torch.full((count,), sign))
    ours = augment.apply(images.to(device), Draw(*(value.to(device) for value in chosen))).cpu().int()
    difference = (ours - augment.apply(images, chosen).int()).abs()
    if name in {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}:
        assert (difference.amax(1) > 0).float().mean() < 0.02  # where a source falls on the edge of two pixels
    else:
        assert difference.max() <= 1


@pytest.mark.parametrize(("view", "differ"), [(augment.weak, 0.0), (augment.strong, 0.02), (augment.detector, 0.001)])
def test_views_are_those_of_a_cpu_for_the_same_draws(
    view: Callable[[Tensor, Rng], Tensor], differ: float, device: torch.device
) -> None:
    images = pictures(256)
    ours, theirs = (
        view(images.to(at), OnCpu(torch.Generator().manual_seed(3), device=at)).cpu().int()
        for at in (device, torch.device("cpu"))
    )
    assert ((ours - theirs).abs() > 1).float().mean() <= differ


# The step.


def batch_of(step: int, device: torch.device) -> Batch:
    labeled, labels, pool = (tensor.to(device) for tensor in toy.pictures())
    rows = toy.rows_of(step).to(device)
    return Batch(labeled, labeled, labels, pool[rows], pool[rows], rows)


def curve(device: torch.device, *, is_compiled: bool, steps: int = 6) -> list[dict[str, float]]:
    """Figures of the first steps in which images are routed."""
    torch.manual_seed(0)
    classifier, detector = Classifier("small", 2), Detector((4, 8))
    for network in (classifier, detector):
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms.split_all(classifier)  # as a GPU does, also where a CPU stands in
    method = methods.build(
        Recipe(num_steps=300, warmup=0.0, queue_length=8, norm_momentum=0.05, confidence_threshold=0.5),
        Controls(detector_init="random"),
        classifier,
        detector,
        nullcontext(),
        num_images=toy.NUM_POOL,
    )
    if is_compiled:
        for network in (classifier, detector):
            if device.type == "cuda":
                network.compile(mode="reduce-overhead")
            else:
                network.compile(backend="aot_eager")  # traces as the other does, and generates no code
    pool = toy.pictures()[2].to(device)
    names, figures = ("sup_real", "self_real", "detector_sup"), []
    for step in range(DETECTOR_SETTLES, DETECTOR_SETTLES + steps):
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        rng = Rng(torch.Generator(device).manual_seed(step))
        of_step = method.step(step, batch_of(step, device), lambda picked: pool[picked], rng)
        figures.append({name: of_step[name].item() for name in names})
    return figures


def test_cuda_graphs_train_as_eager_steps_do(device: torch.device) -> None:
    torch.compiler.reset()
    eager, compiled = curve(device, is_compiled=False), curve(device, is_compiled=True)
    for step, (ours, theirs) in enumerate(zip(compiled, eager, strict=True)):
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=0.02 * (step + 1), abs=0.01), (step, name)


def test_the_host_waits_for_the_gpu_at_most_once_a_step(device: torch.device) -> None:
    """For the sizes of the two routes (`models.norms`)."""
    if device.type == "cpu":
        pytest.skip("a CPU is never waited for")
    labeled, labels, pool = (tensor.cuda() for tensor in toy.pictures())
    rules = ("fixmatch", "flexmatch", "freematch", "softmatch")
    for changes in (*({"rule": rule} for rule in rules), {"method": "openmatch"}, {"method": "iomatch"}):
        torch.manual_seed(0)
        some = torch.arange(0, len(pool), 9, device="cuda")
        method = methods.build(
            Recipe(num_steps=300, warmup=0.0, queue_length=8, **changes),
            Controls(detector_init="random"),
            Classifier("small", 2).cuda(),
            Detector().cuda(),
            nullcontext(),
            num_images=len(pool),
            marked=Marked(some[::2], some[1::2], len(labeled)),
        )
        rng = Rng(torch.Generator("cuda").manual_seed(0))
        rows = rng.integers(0, len(pool), 24)
        batch = Batch(labeled, labeled, labels, pool[rows], pool[rows], rows)
        try:
            for step in (0, 1, 250):
                torch.cuda.set_sync_debug_mode("default" if step == 0 else "warn")  # the first sets libraries up
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    method.step(step, batch, lambda picked, pool=pool: pool[picked], rng)
                waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
                assert len(waits) <= 1, (changes, step, [str(warning.message) for warning in waits])
        finally:
            torch.cuda.set_sync_debug_mode("default")
