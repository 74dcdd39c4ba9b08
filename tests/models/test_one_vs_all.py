"""What the open-set baselines have in common: each loss by hand, what its gradient reaches, two ranks, no waiting."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from models import one_vs_all, ranks
from tests.models.open_set import Views, binary_logits, build, gradients
from tests.warm import Process


def test_binary_probabilities_are_a_softmax_of_two() -> None:
    probs = one_vs_all.binary_log_probs(torch.tensor([[0.0, 1.0, 2.0, 0.0]])).exp()  # outlier 0 and 1, inlier 2 and 0
    inlier = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    torch.testing.assert_close(probs[0, one_vs_all.INLIER], torch.tensor(inlier))
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 2))


def test_one_vs_all_loss_takes_the_label_and_the_worst_of_the_others() -> None:
    logits = binary_logits([[0.8, 0.4, 0.1], [0.3, 0.5, 0.9]])
    expected = (-math.log(0.8) - math.log(0.6) - math.log(0.9) - math.log(0.5)) / 2
    assert one_vs_all.one_vs_all_loss(logits, torch.tensor([0, 2])).item() == pytest.approx(expected, rel=1e-5)


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


def work(folder: Path, rank: int) -> None:
    """What one of two processes does: losses on its part of the batch, gradients averaged."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    for method in ("openmatch", "iomatch"):
        classifier, heads = build(method)
        averaged = gradients(Views().losses(classifier, heads), classifier, heads)
        ranks.average_(averaged)
        save_file(dict(zip(map(str, range(len(averaged))), averaged, strict=True)), folder / f"{method}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_come_to_the_gradients_of_one(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, tests.models.test_one_vs_all as t; t.work(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    )
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
