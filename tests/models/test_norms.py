"""Batch norm apart by route: a pass for each group, parts of one pass, and masks; and what is left for evaluation."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models import norms
from models.classifier import Classifier, Heads

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
GROUPS = torch.tensor([0, 1, 1, 0, 0, 1] * 2)
SYNTHETIC = GROUPS == norms.SYNTHETIC
SOME_AS_TESTED = torch.tensor([0, 1, 2, 0, 0, 1] * 2)
WAYS = ("passes", "parts", "masks")
ALL = pytest.mark.parametrize("way", WAYS)


def network(name: str = "small") -> Classifier:
    torch.manual_seed(0)
    return Classifier(name, 3).train()


def prepared(way: str, classifier: Classifier) -> Classifier:
    """The same network as it is trained on a CPU (passes), a GPU (parts), and compiled or by several ranks (masks)."""
    changed = copy.deepcopy(classifier)
    if way != "passes":
        norms.split_all(changed)
    return changed


def apart(way: str, classifier: Classifier, images: Tensor, groups: Tensor) -> Heads:
    return norms.apart(classifier, images, groups, by_mask=way == "masks")


def statistics(classifier: Classifier) -> dict[str, Tensor]:
    return {name: value for name, value in classifier.named_buffers() if "running" in name}


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("groups", [GROUPS, SOME_AS_TESTED], ids=["two groups", "three"])
@pytest.mark.parametrize("name", ["small", "timm:resnet18", "timm:efficientnet_b0"])
def test_one_pass_gives_what_a_pass_for_each_group_gives(name: str, groups: Tensor, way: str) -> None:
    passes = network(name)
    whole = prepared(way, passes)
    assert any(isinstance(module, norms.SplitBatchNorm) for module in whole.modules())
    for classifier, how in ((passes, "passes"), (whole, way)):
        heads = apart(how, classifier, IMAGES, groups)
        learned = groups != norms.AS_TESTED
        (heads.real[learned, 0].sin().sum() + heads.dummy[learned].square().mean()).backward()
    torch.testing.assert_close(statistics(whole), statistics(passes), rtol=1e-3, atol=1e-4)
    ours, theirs = (torch.cat([value.grad.flatten() for value in net.parameters()]) for net in (whole, passes))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_batch_norms_of_tokens_keep_their_running_statistics_from_the_synthetic_route() -> None:
    """LeViT normalizes tokens, in one dimension."""
    torch.manual_seed(0)
    ours = Classifier("timm:levit_128s", 3, 64).train()
    alone, images = copy.deepcopy(ours), IMAGES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    norms.apart(ours, images, GROUPS)
    alone(images[~SYNTHETIC])
    assert any(isinstance(module, nn.BatchNorm1d) for module in ours.modules())
    torch.testing.assert_close(statistics(ours), statistics(alone), rtol=1e-4, atol=1e-5)


@ALL
def test_neither_group_is_normalized_by_the_other(way: str) -> None:
    changed = IMAGES.clone()
    changed[SYNTHETIC] //= 3
    before, after = (apart(way, prepared(way, network()), images, GROUPS).real for images in (IMAGES, changed))
    torch.testing.assert_close(before[~SYNTHETIC], after[~SYNTHETIC], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[SYNTHETIC], after[SYNTHETIC], rtol=1e-2)


@ALL
def test_running_statistics_are_those_of_the_real_route(way: str) -> None:
    ours, alone = prepared(way, network()), network()
    apart(way, ours, IMAGES, GROUPS)
    alone(IMAGES[~SYNTHETIC])
    torch.testing.assert_close(statistics(ours), statistics(alone), rtol=1e-4, atol=1e-5)
    assert all(norm.num_batches_tracked == 1 for norm in ours.modules() if isinstance(norm, nn.BatchNorm2d))


@ALL
@pytest.mark.parametrize("count", [1, 11, 12])
def test_groups_of_one_and_of_none_are_no_trouble(way: str, count: int) -> None:
    """Of 12 images `count` are synthetic; ResNet's last maps have one pixel, of which one has no variance."""
    classifier = prepared(way, network("timm:resnet18"))
    before = {name: value.clone() for name, value in statistics(classifier).items()}
    heads = apart(way, classifier, IMAGES, (torch.arange(12) < count).long())
    assert heads.real.shape == heads.dummy.shape == (12, 3)
    heads.real.sum().backward()
    assert all(value.isfinite().all() for value in (heads.real, heads.dummy, *statistics(classifier).values()))
    same = all(torch.equal(value, before[name]) for name, value in statistics(classifier).items())
    assert same == (count == 12)  # what no real image was in changes no running statistics


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masked_statistics_are_exact_where_a_channel_hardly_varies(precision: str) -> None:
    """Neither rounded by autocast nor the difference of two squares, which may be negative."""
    rng = torch.Generator().manual_seed(0)
    mean, spread = torch.tensor([1.0, 20.0, 300.0, 300.0]), torch.tensor([0.05, 0.05, 0.5, 0.0])
    maps = mean[:, None, None] + spread[:, None, None] * torch.randn(12, 4, 8, 8, generator=rng)
    norm = norms.SplitBatchNorm(4).train()
    norm.group = GROUPS
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = norm(maps)
    for group in (norms.REAL, norms.SYNTHETIC):
        alone = nn.functional.batch_norm(maps[group == GROUPS].double(), None, None, training=True).float()
        torch.testing.assert_close(output[group == GROUPS], alone, rtol=1e-2, atol=1e-2)
    real = maps[~SYNTHETIC].double()
    torch.testing.assert_close(norm.running_mean, 0.1 * real.mean((0, 2, 3)).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * real.var((0, 2, 3)).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "wrn-28-2"])
def test_masked_statistics_under_autocast_stay_finite_on_flat_images(name: str) -> None:
    flat = torch.arange(200, 212, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        heads = apart("masks", prepared("masks", network(name)), flat, GROUPS)
    assert heads.real.isfinite().all() and heads.dummy.isfinite().all()


@ALL
def test_with_nothing_synthetic_it_is_plain_batch_norm(way: str) -> None:
    heads, plain = apart(way, prepared(way, network()), IMAGES, torch.full((12,), norms.REAL)), network()(IMAGES)
    torch.testing.assert_close(heads.real, plain.real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads.dummy, plain.dummy, rtol=1e-4, atol=1e-5)


@ALL
def test_images_as_tested_are_read_by_the_running_statistics_and_take_part_in_none(way: str) -> None:
    ours, without = prepared(way, network()), prepared(way, network())
    heads = apart(way, ours, IMAGES, SOME_AS_TESTED)
    kept = SOME_AS_TESTED != norms.AS_TESTED
    others = apart(way, without, IMAGES[kept], SOME_AS_TESTED[kept])
    torch.testing.assert_close(heads.real[kept], others.real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics(ours), statistics(without), rtol=1e-4, atol=1e-5)
    assert ours.training
    tested = ours.eval()(IMAGES[~kept])  # the running statistics follow this batch's real images first
    torch.testing.assert_close(heads.real[~kept], tested.real, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(heads.dummy[~kept], tested.dummy, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@ALL
def test_a_batch_of_one_class_hides_it_but_not_from_who_reads_as_tested(way: str) -> None:
    """A network that tells pictures with a red cast from those with a blue one, and batches of either alone."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(-40, 40, (64, 3, 32, 32), generator=rng)
    is_red = torch.arange(64) % 2 == 1
    cast = torch.tensor([25.0, 0.0, -25.0])[:, None, None] * torch.where(is_red, 1, -1)[:, None, None, None]
    images = (127 + noise + cast).to(torch.uint8)
    classifier = network()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(images).real, is_red.long()).backward()
        optimizer.step()

    def called_red(of: Tensor, group: int) -> float:
        together = torch.cat((images, images[of]))
        groups = torch.cat((torch.full((64,), norms.REAL), torch.full((32,), group)))
        return float((apart(way, prepared(way, classifier), together, groups).real[64:].argmax(1) == 1).float().mean())

    assert called_red(is_red, norms.AS_TESTED) == 1
    assert called_red(~is_red, norms.AS_TESTED) == 0
    assert called_red(is_red, norms.SYNTHETIC) - called_red(~is_red, norms.SYNTHETIC) < 0.5
