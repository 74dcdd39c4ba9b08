"""The classifier on features that were computed before: what it starts as, what it draws, and what its heads teach."""

import torch
from torch import Generator

from models.cached import Cached
from models.probe import Probe
from models.ranks import Rng


def views(count: int = 64, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Features (B, 5, D) of each image as it is, of two weak views and of two strong ones."""
    rng = Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(count, 5, width, generator=rng)


def test_it_starts_as_the_standardization_of_its_features() -> None:
    torch.manual_seed(0)
    probe, features = Probe(12, 3, 2), views()
    probe.adapter.fit(features[:, 0])
    expected = (features[:, 0] - features[:, 0].mean(0)) / features[:, 0].std(0, correction=0) / 12**0.5
    torch.testing.assert_close(probe.embed(features), expected, rtol=1e-2, atol=1e-3)
    assert probe.embed(features).norm(dim=1).mean().item() < 1.1
    torch.testing.assert_close(probe(features).real, probe.real(probe.embed(features)))


def test_it_takes_features_of_half_precision_and_sees_the_first_view_alone() -> None:
    torch.manual_seed(0)
    probe, features = Probe(12, 3, 2), views()
    assert probe.embed(features.half()).dtype == torch.float32
    assert torch.equal(probe(features).real, probe(features[:, :1]).real)


def test_the_dummy_head_teaches_what_both_heads_see() -> None:
    torch.manual_seed(0)
    probe, features = Probe(12, 3, 2), views()
    before = probe(features).real.detach()
    optimizer = torch.optim.SGD(probe.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(probe(features).dummy, torch.arange(64) % 3).backward()
        optimizer.step()
    assert probe.real.weight.grad is None
    assert not torch.allclose(probe(features).real, before, atol=1e-4)


def test_weak_and_strong_views_are_drawn_from_their_own() -> None:
    numbered = torch.arange(5.0)[None, :, None].expand(400, 5, 2)
    augmentation, rng = Cached(num_strong=2), Rng(Generator().manual_seed(0))
    weak, strong = augmentation.weak(numbered, rng), augmentation.strong(numbered, rng)
    assert weak.shape == strong.shape == (400, 1, 2)
    assert weak.unique().tolist() == [0, 1, 2] and strong.unique().tolist() == [3, 4]
    of_image = torch.arange(400.0)[:, None, None].expand(400, 5, 2)
    assert torch.equal(augmentation.weak(of_image, rng)[:, 0, 0], torch.arange(400.0))
