"""Each loss against a case computed by hand, the whole against plain loops, and what each gradient reaches."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models.networks import Classifier
from models.openset import IOMatch, OpenLoss, OpenMatch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import openset
from models.ranks import Ranks
from tests.warm import Process

K, TAU = 3, 0.4


def binary_logits(inlier: list[list[float]]) -> Tensor:
    """Logits whose K classifiers say "inlier" with these probabilities."""
    probs = torch.tensor(inlier)
    return torch.cat(((1 - probs).log(), probs.log()), dim=1)


def test_binary_probabilities_are_a_softmax_of_two() -> None:
    probs = openset.binary_log_probs(torch.tensor([[0.0, 1.0, 2.0, 0.0]])).exp()  # outlier 0 and 1, inlier 2 and 0
    inlier = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    torch.testing.assert_close(probs[0, openset.INLIER], torch.tensor(inlier))
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 2))


def test_one_vs_all_loss_takes_the_label_and_the_worst_of_the_others() -> None:
    logits = binary_logits([[0.8, 0.4, 0.1], [0.3, 0.5, 0.9]])
    expected = (-math.log(0.8) - math.log(0.6) - math.log(0.9) - math.log(0.5)) / 2
    assert openset.one_vs_all_loss(logits, torch.tensor([0, 2])).item() == pytest.approx(expected, rel=1e-5)


def test_entropy_is_the_mean_over_the_classifiers() -> None:
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert openset.entropy_loss(binary_logits([[0.5, 0.9]])).item() == pytest.approx((math.log(2) + h) / 2, rel=1e-5)


def test_consistency_is_the_squared_distance_of_both_outputs() -> None:
    first, second = binary_logits([[0.8, 0.4], [0.3, 0.2]]), binary_logits([[0.6, 0.5], [0.3, 0.2]])
    expected = (2 * 0.2**2 + 2 * 0.1**2) / 2
    assert openset.consistency_loss(first, second).item() == pytest.approx(expected, rel=1e-5)


def test_open_targets_give_the_rest_to_the_outliers() -> None:
    targets = openset.open_targets(torch.tensor([[0.7, 0.3]]), torch.tensor([[0.9, 0.2]]))
    torch.testing.assert_close(targets, torch.tensor([[0.63, 0.06, 0.31]]))


def test_soft_loss_averages_over_all_images() -> None:
    logits = torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log()
    targets = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    expected = -(0.5 * math.log(0.6) + 0.5 * math.log(0.4)) / 2
    assert openset.soft_loss(logits, targets, torch.tensor([1.0, 0.0])).item() == pytest.approx(expected, rel=1e-5)


def test_alignment_divides_by_the_mean_prediction_of_the_last_batches() -> None:
    heads = IOMatch(4, 2, TAU)
    aligned = heads.align(torch.tensor([[0.8, 0.2], [0.4, 0.6]]))  # mean (0.6, 0.4)
    torch.testing.assert_close(aligned[0], torch.tensor([8 / 11, 3 / 11]))
    torch.testing.assert_close(aligned[1], torch.tensor([4 / 13, 9 / 13]))
    aligned = heads.align(torch.tensor([[0.2, 0.8]]))  # mean of both batches (0.4, 0.6)
    torch.testing.assert_close(aligned[0], torch.tensor([0.5, 4 / 3]) / (0.5 + 4 / 3))
    for _ in range(openset.ALIGN_OVER):
        aligned = heads.align(torch.tensor([[0.2, 0.8]]))
    torch.testing.assert_close(aligned[0], torch.tensor([0.5, 0.5]))  # the first two are forgotten


class Plain(Classifier):
    """A classifier without batch norm, so that a reference may forward the views one by one."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_features = 6
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.Tanh())
        self.real, self.dummy = nn.Linear(6, K), nn.Linear(6, K)
        nn.init.normal_(self.real.weight)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        features: Tensor = self.backbone(images_BCHW.float() / 64 - 2)
        return features


class Views:
    """A small batch of random views."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.labeled, self.weak, self.again, self.strong = (
            torch.randint(0, 256, (count, 3, 8, 8), generator=rng, dtype=torch.uint8) for count in (6, 12, 12, 12)
        )
        self.labels = torch.randint(K, (6,), generator=rng)

    def losses(self, classifier: Plain, heads: OpenMatch | IOMatch, warmed_up: bool = True) -> OpenLoss:
        own = heads.ranks.own
        weak = [own(view) for view in (self.weak, self.again)][: heads.num_weak]
        return heads.losses(
            classifier, own(self.labeled), own(self.labels), weak, own(self.strong), warmed_up=warmed_up
        )


def build(method: str, **options: Any) -> tuple[Plain, OpenMatch | IOMatch]:
    torch.manual_seed(0)
    classifier = Plain()
    heads = openset.build(method, 6, K, **({"threshold": TAU, "weak_gradient": True} | options))
    assert heads is not None
    return classifier, heads


def each(*views: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for images in zip(*views, strict=True):
        yield tuple(image[None] for image in images)


def test_openmatch_is_the_documented_sum() -> None:
    views = Views()
    classifier, heads = build("openmatch")
    assert isinstance(heads, OpenMatch)

    def inlier(image: Tensor) -> Tensor:
        outlier, inlier = heads.one_vs_all(classifier.embed(image)).view(2, K)
        return torch.sigmoid(inlier - outlier)

    entropy = consistency = pseudo = 0.0
    inliers = []
    for weak, again, strong in each(views.weak, views.again, views.strong):
        first, second = inlier(weak), inlier(again)
        for o in (first, second):
            entropy += float(-(o * o.log() + (1 - o) * (1 - o).log()).detach().mean()) / 2 / 12
        consistency += float(2 * (first - second).detach().square().sum()) / 12
        chosen = classifier.real(classifier.embed(weak)).argmax(1)
        inliers.append(bool(first[chosen] > 0.5))
        if inliers[-1]:
            pseudo += F.cross_entropy(classifier.real(classifier.embed(strong)), chosen).item()
    losses = views.losses(classifier, heads)
    assert 0 < sum(inliers) < 12
    assert losses.inlier.tolist() == inliers
    assert losses.self_real.item() == pytest.approx(pseudo / sum(inliers), rel=1e-5)
    assert losses.self_open.item() == pytest.approx(0.1 * entropy + 0.5 * consistency, rel=1e-5)
    features = classifier.embed(views.labeled)
    torch.testing.assert_close(losses.sup_real, F.cross_entropy(classifier.real(features), views.labels))
    torch.testing.assert_close(losses.sup_open, openset.one_vs_all_loss(heads.one_vs_all(features), views.labels))
    torch.testing.assert_close(losses.total, losses.sup_real + losses.sup_open + losses.self_real + losses.self_open)


def test_openmatch_gives_no_pseudo_labels_before_the_warm_up_is_over() -> None:
    classifier, heads = build("openmatch")
    losses = Views().losses(classifier, heads, warmed_up=False)
    assert losses.self_real.item() == 0
    assert not losses.weight.any()
    assert losses.self_open.item() > 0


def test_openmatch_without_a_pseudo_inlier_stays_finite() -> None:
    classifier, heads = build("openmatch")
    nn.init.zeros_(heads.one_vs_all.weight)  # all at 0.5, which is not an inlier
    losses = Views().losses(classifier, heads)
    assert losses.self_real.item() == 0
    assert losses.total.isfinite()


def test_iomatch_is_the_documented_sum() -> None:
    views = Views()
    classifier, heads = build("iomatch")
    assert isinstance(heads, IOMatch)
    predicted = classifier.real(classifier.embed(views.weak)).softmax(1).detach()
    self_real = self_open = 0.0
    weights = []
    for k, (weak_view, strong_view) in enumerate(each(views.weak, views.strong)):
        p = predicted[k] / predicted.mean(0)
        p = p / p.sum()
        outlier, inlier = heads.binary(heads.projection(classifier.embed(weak_view))).view(2, K)
        o = torch.sigmoid(inlier - outlier).detach()
        q = [*(p * o).tolist(), float((p * (1 - o)).sum())]
        strong = classifier.embed(strong_view)
        log_p = classifier.real(strong).log_softmax(1)[0].tolist()
        log_q = heads.open_set(heads.projection(strong)).log_softmax(1)[0].tolist()
        weights.append(float(p.max() >= TAU and q[-1] < 0.5))
        self_real -= weights[-1] * sum(a * b for a, b in zip(p.tolist(), log_p, strict=True)) / 12
        self_open -= (max(q) >= 0.5) * sum(a * b for a, b in zip(q, log_q, strict=True)) / 12
    losses = views.losses(classifier, heads)
    assert 0 < sum(weights) < 12
    assert losses.weight.tolist() == weights
    assert losses.self_real.item() == pytest.approx(self_real, rel=1e-4)
    assert losses.self_open.item() == pytest.approx(self_open, rel=1e-4)
    assert self_open > 0
    features = classifier.embed(views.labeled)
    binary = heads.binary(heads.projection(features))
    torch.testing.assert_close(losses.sup_real, F.cross_entropy(classifier.real(features), views.labels))
    torch.testing.assert_close(losses.sup_open, openset.one_vs_all_loss(binary, views.labels))


@pytest.mark.parametrize(
    ("method", "term", "reached"),
    [
        ("openmatch", "sup_real", {"backbone", "real"}),
        ("openmatch", "self_real", {"backbone", "real"}),
        ("openmatch", "sup_open", {"backbone", "one_vs_all"}),
        ("openmatch", "self_open", {"backbone", "one_vs_all"}),
        ("iomatch", "sup_real", {"backbone", "real"}),
        ("iomatch", "self_real", {"backbone", "real"}),
        ("iomatch", "sup_open", {"backbone", "projection", "binary"}),
        ("iomatch", "self_open", {"backbone", "projection", "open_set"}),
    ],
)
def test_each_term_teaches_its_own_heads_and_the_backbone(method: str, term: str, reached: set[str]) -> None:
    classifier, heads = build(method)
    getattr(Views().losses(classifier, heads), term).backward()
    parameters = [*classifier.named_parameters(), *heads.named_parameters()]
    assert {name.split(".")[0] for name, value in parameters if value.grad is not None and value.grad.any()} == reached


def test_targets_of_openmatch_carry_no_gradient() -> None:
    views = Views()
    classifier, heads = build("openmatch")
    losses = views.losses(classifier, heads)
    gradient = torch.autograd.grad(losses.self_real, classifier.backbone[1].weight)[0]
    strong = classifier.real(classifier.embed(views.strong))[losses.inlier]
    alone = F.cross_entropy(strong, losses.pseudo_probs.argmax(1)[losses.inlier])
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, classifier.backbone[1].weight)[0])


def test_targets_of_iomatch_carry_no_gradient() -> None:
    """Weak views in a pass of their own, without a graph, give the same: exactly so without batch norm."""
    results = []
    for weak_gradient in (True, False):
        classifier, heads = build("iomatch", weak_gradient=weak_gradient)
        losses = Views().losses(classifier, heads)
        results.append((losses.total.detach(), gradients(losses, classifier, heads)))
    torch.testing.assert_close(results[0], results[1])


def gradients(losses: OpenLoss, classifier: Plain, heads: OpenMatch | IOMatch) -> list[Tensor]:
    losses.total.backward()
    return [p.grad for p in (*classifier.parameters(), *heads.parameters()) if p.grad is not None]


def work(folder: Path, rank: int) -> None:
    """What one of two processes does: losses on its part of the batch, gradients averaged."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    for method in ("openmatch", "iomatch"):
        classifier, heads = build(method, ranks=ranks)
        averaged = gradients(Views().losses(classifier, heads), classifier, heads)
        ranks.average_(averaged)
        save_file(dict(zip(map(str, range(len(averaged))), averaged, strict=True)), folder / f"{method}-{rank}")
    torch.distributed.destroy_process_group()


def test_two_ranks_come_to_the_gradients_of_one(tmp_path: Path) -> None:
    script = "import sys, pathlib, tests.models.test_openset as t; t.work(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    workers = [Process(("-c", script, str(tmp_path), str(k))) for k in range(2)]
    assert [worker.wait().returncode for worker in workers] == [0, 0]
    for method in ("openmatch", "iomatch"):
        classifier, heads = build(method)
        losses = Views().losses(classifier, heads)
        # The halves differ in what is averaged over them, or the parts alone would come to the same.
        assert losses.inlier[:6].sum() != losses.inlier[6:].sum()
        expected = gradients(losses, classifier, heads)
        for rank in range(2):
            found = load_file(tmp_path / f"{method}-{rank}")
            torch.testing.assert_close([found[str(i)] for i in range(len(expected))], expected)


class NoSync(TorchDispatchMode):
    """Refuses whatever would make the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["openmatch", "iomatch"])
def test_losses_never_wait_for_the_device(method: str) -> None:
    classifier, heads = build(method)
    with NoSync():
        Views().losses(classifier, heads).total.backward()
    with NoSync(), pytest.raises(AssertionError):
        torch.ones(1).item()
