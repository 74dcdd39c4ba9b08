"""Batch norm apart by route: masked statistics against a pass for each group, and what is left for evaluation."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models import norms
from models.networks import Classifier
from models.ranks import ALONE

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
GROUPS = torch.tensor([0, 1, 1, 0, 0, 1] * 2)
SYNTHETIC = GROUPS == norms.SYNTHETIC
SOME_AS_TESTED = torch.tensor([0, 1, 2, 0, 0, 1] * 2)
BOTH = pytest.mark.parametrize("turn", [lambda classifier: classifier, lambda c: masked(c)], ids=["passes", "masked"])


def network(name: str = "small") -> Classifier:
    torch.manual_seed(0)
    return Classifier(name, 3).train()


def masked(classifier: Classifier) -> Classifier:
    """The same network as it is trained on a GPU."""
    changed = copy.deepcopy(classifier)
    norms.split_all(changed, ALONE)
    return changed


def statistics(classifier: Classifier) -> dict[str, Tensor]:
    return {name: value for name, value in classifier.named_buffers() if "running" in name}


@pytest.mark.parametrize("groups", [GROUPS, SOME_AS_TESTED], ids=["two groups", "three"])
@pytest.mark.parametrize("name", ["small", "timm:resnet18", "timm:efficientnet_b0"])
def test_masked_statistics_are_those_of_a_pass_for_each_group(name: str, groups: Tensor) -> None:
    passes = network(name)
    whole = masked(passes)
    assert any(isinstance(module, norms.SplitBatchNorm) for module in whole.modules())
    for classifier in (passes, whole):
        heads = norms.apart(classifier, IMAGES, groups)
        learned = groups != norms.AS_TESTED
        (heads.real[learned, 0].sin().sum() + heads.dummy[learned].square().mean()).backward()
    torch.testing.assert_close(statistics(whole), statistics(passes), rtol=1e-3, atol=1e-4)
    ours, theirs = (torch.cat([value.grad.flatten() for value in net.parameters()]) for net in (whole, passes))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


@BOTH
def test_neither_group_is_normalized_by_the_other(turn) -> None:  # type: ignore[no-untyped-def]
    changed = IMAGES.clone()
    changed[SYNTHETIC] //= 3
    before, after = (norms.apart(turn(network()), images, GROUPS).real for images in (IMAGES, changed))
    torch.testing.assert_close(before[~SYNTHETIC], after[~SYNTHETIC], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[SYNTHETIC], after[SYNTHETIC], rtol=1e-2)


@BOTH
def test_running_statistics_are_those_of_the_real_route(turn) -> None:  # type: ignore[no-untyped-def]
    ours, alone = turn(network()), network()
    norms.apart(ours, IMAGES, GROUPS)
    alone(IMAGES[~SYNTHETIC])
    torch.testing.assert_close(statistics(ours), statistics(alone), rtol=1e-4, atol=1e-5)
    assert all(norm.num_batches_tracked == 1 for norm in ours.modules() if isinstance(norm, nn.BatchNorm2d))


@BOTH
@pytest.mark.parametrize("count", [1, 11, 12])
def test_groups_of_one_and_of_none_are_no_trouble(turn, count: int) -> None:  # type: ignore[no-untyped-def]
    """Of 12 images `count` are synthetic; ResNet's last maps have one pixel, of which one has no variance."""
    classifier = turn(network("timm:resnet18"))
    before = {name: value.clone() for name, value in statistics(classifier).items()}
    heads = norms.apart(classifier, IMAGES, (torch.arange(12) < count).long())
    assert heads.real.shape == heads.dummy.shape == (12, 3)
    heads.real.sum().backward()
    assert all(value.isfinite().all() for value in (heads.real, heads.dummy, *statistics(classifier).values()))
    same = all(torch.equal(value, before[name]) for name, value in statistics(classifier).items())
    assert same == (count == 12)  # what no real image was in changes no running statistics


@BOTH
def test_with_nothing_synthetic_it_is_plain_batch_norm(turn) -> None:  # type: ignore[no-untyped-def]
    heads, plain = norms.apart(turn(network()), IMAGES, torch.full((12,), norms.REAL)), network()(IMAGES)
    torch.testing.assert_close(heads.real, plain.real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads.dummy, plain.dummy, rtol=1e-4, atol=1e-5)


@BOTH
def test_images_as_tested_are_read_by_the_running_statistics_and_take_part_in_none(turn) -> None:  # type: ignore[no-untyped-def]
    ours, without = turn(network()), turn(network())
    heads = norms.apart(ours, IMAGES, SOME_AS_TESTED)
    kept = SOME_AS_TESTED != norms.AS_TESTED
    others = norms.apart(without, IMAGES[kept], SOME_AS_TESTED[kept])
    torch.testing.assert_close(heads.real[kept], others.real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics(ours), statistics(without), rtol=1e-4, atol=1e-5)
    assert ours.training
    tested = ours.eval()(IMAGES[~kept])  # the running statistics follow this batch's real images first
    torch.testing.assert_close(heads.real[~kept], tested.real, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(heads.dummy[~kept], tested.dummy, rtol=1e-3, atol=1e-4)


@BOTH
def test_a_batch_of_one_class_hides_it_but_not_from_who_reads_as_tested(turn) -> None:  # type: ignore[no-untyped-def]
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
        return float((norms.apart(turn(classifier), together, groups).real[64:].argmax(1) == 1).float().mean())

    assert called_red(is_red, norms.AS_TESTED) == 1
    assert called_red(~is_red, norms.AS_TESTED) == 0
    assert called_red(is_red, norms.SYNTHETIC) - called_red(~is_red, norms.SYNTHETIC) < 0.5
