"""Batch norm apart by route: masked statistics against a pass for each group, and what is left for evaluation."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models import norms
from models.networks import Classifier
from models.ranks import ALONE

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SYNTHETIC = torch.tensor([False, True, True, False, False, True] * 2)
NONE = torch.zeros(12, dtype=torch.bool)


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


@pytest.mark.parametrize("name", ["small", "timm:resnet18", "timm:efficientnet_b0"])
def test_masked_statistics_are_those_of_a_pass_for_each_group(name: str) -> None:
    passes = network(name)
    whole = masked(passes)
    assert any(isinstance(module, norms.SplitBatchNorm) for module in whole.modules())
    for classifier in (passes, whole):
        heads = norms.apart(classifier, IMAGES, SYNTHETIC)
        (heads.real[:, 0].sin().sum() + heads.dummy.square().mean()).backward()
    torch.testing.assert_close(statistics(whole), statistics(passes), rtol=1e-3, atol=1e-4)
    ours, theirs = (torch.cat([value.grad.flatten() for value in net.parameters()]) for net in (whole, passes))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.parametrize("turn", [lambda classifier: classifier, masked], ids=["passes", "masked"])
def test_neither_group_is_normalized_by_the_other(turn) -> None:  # type: ignore[no-untyped-def]
    changed = IMAGES.clone()
    changed[SYNTHETIC] //= 3
    before, after = (norms.apart(turn(network()), images, SYNTHETIC).real for images in (IMAGES, changed))
    torch.testing.assert_close(before[~SYNTHETIC], after[~SYNTHETIC], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[SYNTHETIC], after[SYNTHETIC], rtol=1e-2)


@pytest.mark.parametrize("turn", [lambda classifier: classifier, masked], ids=["passes", "masked"])
def test_running_statistics_are_those_of_the_real_route(turn) -> None:  # type: ignore[no-untyped-def]
    ours, alone = turn(network()), network()
    norms.apart(ours, IMAGES, SYNTHETIC)
    alone(IMAGES[~SYNTHETIC])
    torch.testing.assert_close(statistics(ours), statistics(alone), rtol=1e-4, atol=1e-5)
    assert all(norm.num_batches_tracked == 1 for norm in ours.modules() if isinstance(norm, nn.BatchNorm2d))


@pytest.mark.parametrize("turn", [lambda classifier: classifier, masked], ids=["passes", "masked"])
@pytest.mark.parametrize("count", [1, 11, 12])
def test_groups_of_one_and_of_none_are_no_trouble(turn, count: int) -> None:  # type: ignore[no-untyped-def]
    """Of 12 images `count` are synthetic; ResNet's last maps have one pixel, of which one has no variance."""
    classifier = turn(network("timm:resnet18"))
    before = {name: value.clone() for name, value in statistics(classifier).items()}
    heads = norms.apart(classifier, IMAGES, torch.arange(12) < count)
    assert heads.real.shape == heads.dummy.shape == (12, 3)
    heads.real.sum().backward()
    assert all(value.isfinite().all() for value in (heads.real, heads.dummy, *statistics(classifier).values()))
    same = all(torch.equal(value, before[name]) for name, value in statistics(classifier).items())
    assert same == (count == 12)  # what no real image was in changes no running statistics


@pytest.mark.parametrize("turn", [lambda classifier: classifier, masked], ids=["passes", "masked"])
def test_with_nothing_synthetic_it_is_plain_batch_norm(turn) -> None:  # type: ignore[no-untyped-def]
    heads, plain = norms.apart(turn(network()), IMAGES, NONE), network()(IMAGES)
    torch.testing.assert_close(heads.real, plain.real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads.dummy, plain.dummy, rtol=1e-4, atol=1e-5)
