"""Two real processes, each with half of a batch, come to the losses and gradients of one process with all of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import norms, ranks
from models.controls import nnpu_risk, true_risk
from models.rules import FreeMatch
from tests.warm import Process

K = 3


class Batch:
    """Logits, and maps for a batch norm, whose halves differ in all that is averaged over them."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        shift = torch.arange(8.0)[:, None]
        self.real_B = torch.randn(8, generator=rng) - 1
        self.unlabeled_M = torch.randn(8, generator=rng) + shift[:, 0] - 3
        self.synthetic_M = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0]).bool()
        self.strong_MK = torch.randn(8, K, generator=rng) * shift
        self.weight_M = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0.5])
        self.maps_BCHW = torch.randn(8, 2, 4, 4, generator=rng) + shift[..., None, None]
        self.group_B = torch.tensor([0, 1, 2, 0, 1, 1, 1, 0])

    def losses(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each loss its value and its gradient by a scale that all logits share."""
        rule = FreeMatch(K)
        rule.probs.copy_(torch.tensor([0.5, 0.3, 0.2]))
        norm = norms.SplitBatchNorm(2)
        norm.group = ranks.own(self.group_B)
        found = {}
        for name in ("true", "nnpu", "nnpu overfitted", "fairness", "norm"):
            scale = torch.tensor(1.5, requires_grad=True)
            real, unlabeled = (scale * ranks.own(part) for part in (self.real_B, self.unlabeled_M))
            match name:
                case "true":
                    loss = true_risk(real, unlabeled, ranks.own(self.synthetic_M))
                case "nnpu":
                    loss = nnpu_risk(real, unlabeled, 0.2)
                case "nnpu overfitted":  # in the whole, though not in each half
                    loss = nnpu_risk(real, unlabeled, 0.5)
                case "fairness":
                    loss = rule.penalty(scale * ranks.own(self.strong_MK), ranks.own(self.weight_M))
                case _:
                    loss = norm(scale**2 * ranks.own(self.maps_BCHW) + scale.sin()).sin().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            assert scale.grad is not None
            found[name] = (loss.detach(), scale.grad)
        return found


def work(folder: Path, rank: int) -> None:
    """What one of the two does: losses and gradients of its half, averaged over both, and what rank 0 decides."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, pair in Batch().losses().items():
        ranks.average_(pair)
        found |= {f"{name}/{part}": value for part, value in zip(("loss", "gradient"), pair, strict=True)}
    decided = {"flags": torch.tensor([True, False, True]) ^ (rank == 1), "number": torch.tensor(float(rank))}
    ranks.from_first_(decided.values())
    save_file(found | decided, folder / f"rank{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_come_to_the_losses_of_one(tmp_path: Path) -> None:
    script = "import sys, pathlib, tests.models.test_ranks as t; t.work(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    workers = [Process(("-c", script, str(tmp_path), str(k))) for k in range(2)]
    assert [worker.wait().returncode for worker in workers] == [0, 0]
    first, second = (load_file(tmp_path / f"rank{k}") for k in range(2))
    for name, (loss, gradient) in Batch().losses().items():
        assert gradient.abs() > 1e-4, name
        for ours in (first, second):
            torch.testing.assert_close(ours[f"{name}/loss"], loss, msg=name)
            torch.testing.assert_close(ours[f"{name}/gradient"], gradient, msg=name)
    for ours in (first, second):
        assert ours["flags"].tolist() == [True, False, True]
        assert ours["number"] == 0


def test_the_halves_by_themselves_come_to_something_else() -> None:
    """So that the test above would notice ranks that did not speak to each other."""
    whole, losses = Batch().losses(), []
    for rank in range(2):
        half = Batch()
        for name, value in vars(half).items():
            setattr(half, name, value[4 * rank : 4 * rank + 4])
        losses.append(half.losses())
    for name, (loss, gradient) in whole.items():
        apart = [sum(parts[name][i] for parts in losses) / 2 for i in range(2)]
        assert not torch.allclose(apart[0], loss, rtol=1e-3) or not torch.allclose(apart[1], gradient, rtol=1e-3), name


def test_without_a_group_every_function_is_the_identity() -> None:
    values = torch.arange(4.0)
    assert ranks.world_size() == 1
    assert ranks.own(values) is ranks.gather(values) is ranks.sum_over(values) is values
    ranks.average_([values])
    ranks.from_first_([values])
    assert values.tolist() == [0, 1, 2, 3]
    assert ranks.any_rank(True, values.device) and not ranks.any_rank(False, values.device)
