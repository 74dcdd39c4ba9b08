"""A panel of witnesses that tells real from generated images without one synthetic label; our addition to the paper.

A *witness* is a group of features of an image (`models.witnesses`) with a linear score. It is fitted to the labeled
real images on one side and the pool on the other (positive-unlabeled learning): where part of the pool is synthetic,
the direction in which the pool differs from the real images is that of the synthetic ones. Where some synthetic images
are known, each witness has a second score, fitted to them instead of the pool. No score is strong. Their errors differ,
so their sum ranks far better than the best of them (docs/benchmarks.md).

Scores vote by how well they separate the pool from the real images, whatever they were fitted to. So known images of
the generators that the pool is of count much, and those of others, which mislead, count little.

Every score is cross-fitted: an image belongs to one of `FOLDS` folds by the digest of its file, and is scored by models
that have seen no image of its fold. So the scores of the labeled images are those of unseen real images, an image
has the same score wherever it lies, and comparing pool and labeled images says how well the panel separates.

Shape suffixes: M images, F features, K folds, W scores: of all witnesses by the pool, then by known images.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.estimates import excess
from models.residual import FAR

FOLDS = 5
LEAST_SEPARATION = 0.01  # of a score, above chance: none is left out altogether
POWER = 2.0  # of the separation in a vote
WIDE = 1_000  # features from which a witness takes the penalty of wide ones
PENALTY, WIDE_PENALTY = 0.3, 10.0  # ridge, in units of the standardized features' variance


def fold_of(sha256: Sequence[str]) -> Tensor:
    """Folds (M,) int64, 0..FOLDS - 1, of files by their hexadecimal digests."""
    return torch.tensor([int(digest[:8], 16) % FOLDS for digest in sha256], dtype=torch.int64)


class Examples(NamedTuple):
    """What M images teach the panel.

    An image of the pool that nobody knows to be real is evidence of the synthetic side.
    """

    pool: Tensor  # (M,) bool, images of the pool
    labeled: Tensor  # (M,) bool, a random sample of real images: separation is measured on these alone
    real: Tensor  # (M,) float64 weight as a real example; 1 for a labeled image
    synthetic: Tensor  # (M,) float64 weight as a known synthetic example; 1 for one that is certain


class Panel(nn.Module):
    """Linear scores of witnesses in K folds, and their votes; all state is in buffers.

    The sum is standardized: over the pool that it was fitted to, its mean is 0 and its standard deviation 1. Images
    come as the features of all witnesses side by side and, last, their fold: (M, F + 1), as `pipelines.pool.features`
    keeps them.
    """

    threshold: Tensor  # 0-d, of the standardized sum; a logit of 0
    votes: Tensor  # (K, W) float64, from images of other folds
    moments: Tensor  # (K, 2) mean and standard deviation of the sum over the pool

    def __init__(self, widths: Mapping[str, int]) -> None:
        """Build an unfitted panel of witnesses, given by name and number of features F."""
        super().__init__()
        self.widths = dict(widths)
        self._names = [*self.widths, *(f"{name}_by_known" for name in self.widths)]
        for name, width in zip(self._names, 2 * list(self.widths.values()), strict=True):
            for part, value in (("mean", 0.0), ("std", 1.0), ("weight", 0.0)):
                self.register_buffer(f"{name}_{part}", torch.full((FOLDS, width), value, dtype=torch.float64))
            self.register_buffer(f"{name}_moments", torch.tensor([[0.0, 1.0]] * FOLDS, dtype=torch.float64))
        self.register_buffer("votes", torch.ones(FOLDS, len(self._names), dtype=torch.float64))
        self.register_buffer("threshold", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("moments", torch.tensor([[0.0, 1.0]] * FOLDS, dtype=torch.float64))

    def forward(self, packed_MF: Tensor) -> Tensor:
        """Logits (M,) float32, positive for synthetic."""
        return self.score(packed_MF) - self.threshold.float()

    def score(self, packed_MF: Tensor) -> Tensor:
        """Standardized sums (M,) float32; higher is more synthetic."""
        fold_M = packed_MF[:, -1].long()
        mean_M, std_M = self.moments[fold_M].unbind(1)
        standardized: Tensor = ((self.alone(packed_MF) * self.votes[fold_M]).sum(1) - mean_M) / std_M
        return standardized.float()

    def alone(self, packed_MF: Tensor) -> Tensor:
        """Each score (M, W) float64, standardized over the pool; 0 for those by known images where there are none."""
        fold_M = packed_MF[:, -1].long()
        scored = [
            self._score(name, part, fold_M) for name, part in zip(self._names, self._parts(packed_MF), strict=True)
        ]
        return torch.stack(scored, dim=1)

    def _parts(self, packed_MF: Tensor) -> list[Tensor]:
        """The features (M, F) of each score."""
        return 2 * list(torch.split(packed_MF[:, :-1], list(self.widths.values()), dim=1))

    def _score(self, name: str, features_MF: Tensor, fold_M: Tensor) -> Tensor:
        scores_M = torch.zeros(len(features_MF), dtype=torch.float64, device=features_MF.device)
        parts = [self.get_buffer(f"{name}_{part}") for part in ("mean", "std", "weight", "moments")]
        for k, (mean_F, std_F, weight_F, moments) in enumerate(zip(*parts, strict=True)):
            mine = fold_M == k
            scores_M[mine] = (_standardized(features_MF[mine], mean_F, std_F) @ weight_F - moments[0]) / moments[1]
        return scores_M

    def fit(self, packed_MF: Tensor, examples: Examples) -> None:
        """Fit all scores and their votes."""
        fold_M, num_witnesses = packed_MF[:, -1].long(), len(self.widths)
        pool_M, known_M = examples.pool.double() * (examples.real == 0), examples.synthetic
        sides = num_witnesses * [pool_M if pool_M.any() else examples.pool.double()] + num_witnesses * [known_M]
        for name, part, synthetic_M in zip(self._names, self._parts(packed_MF), sides, strict=True):
            if synthetic_M.any():
                self._fit_score(name, part, fold_M, examples, synthetic_M)
        scores_MW = self.alone(packed_MF)
        for k in range(FOLDS):
            # Not by images that will be scored with them: the panel would seem to separate better than it does.
            separation_W = _separations(scores_MW, examples, fold_M != k)
            self.votes[k] = separation_W.clamp(min=LEAST_SEPARATION).pow(POWER)
            of_pool = scores_MW[examples.pool] @ self.votes[k]
            self.moments[k] = torch.stack((of_pool.mean(), of_pool.std(correction=0).clamp(min=1e-9)))

    def _fit_score(
        self, name: str, features_MF: Tensor, fold_M: Tensor, examples: Examples, synthetic_M: Tensor
    ) -> None:
        penalty = WIDE_PENALTY if features_MF.shape[1] >= WIDE else PENALTY
        real_M, synthetic_M = (side / (2 * side.sum()) for side in (examples.real, synthetic_M))
        buffers = [self.get_buffer(f"{name}_{part}") for part in ("mean", "std", "weight", "moments")]
        for k in range(FOLDS):
            others = (fold_M != k).double()
            real, synthetic = real_M * others, synthetic_M * others
            if name not in self.widths and not synthetic.any():
                continue  # one fold holds all known images: this one gets no score by them, rather than one that saw it
            if not (real.any() and synthetic.any()):  # so few images that one fold holds all
                real, synthetic = real_M, synthetic_M
            fitted = _ridge(features_MF, real, synthetic, penalty)
            of_pool = _standardized(features_MF[examples.pool], fitted[0], fitted[1]) @ fitted[2]
            moments = torch.stack((of_pool.mean(), of_pool.std(correction=0).clamp(min=1e-9)))
            for buffer, value in zip(buffers, (*fitted, moments), strict=True):
                buffer[k].copy_(value)


def _ridge(features_MF: Tensor, real_M: Tensor, synthetic_M: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression on -1 (real) and +1 (synthetic): mean, deviation and weight (F,) float64.

    Solved in the space of the images where these are fewer than the features.
    """
    used = (real_M + synthetic_M) > 0
    features, weight = features_MF[used].double(), (real_M + synthetic_M)[used][:, None]
    sign = ((synthetic_M - real_M)[used] / weight.squeeze(1))[:, None]
    known = features.isfinite()
    present = (weight * known).sum(0).clamp(min=1e-12)
    centered = torch.where(known, features, 0.0)
    mean_F = (weight * centered).sum(0) / present
    std_F = (weight * torch.where(known, features - mean_F, 0.0).square()).sum(0).div(present).sqrt() + 1e-6
    design = _standardized(features, mean_F, std_F)
    root = weight.sqrt()
    scaled, target = root * design, root * sign
    if design.shape[1] > len(design):
        gram = scaled @ scaled.T + penalty * torch.eye(len(design), device=design.device).double()
        solution = scaled.T @ torch.linalg.solve(gram, target)
    else:
        gram = scaled.T @ scaled + penalty * torch.eye(design.shape[1], device=design.device).double()
        solution = torch.linalg.solve(gram, scaled.T @ target)
    return mean_F, std_F, solution.squeeze(1)


def _standardized(features_MF: Tensor, mean_F: Tensor, std_F: Tensor) -> Tensor:
    """Standardized features, clipped, because one extreme feature would outvote all others; 0 where one is unknown."""
    return ((features_MF.double() - mean_F) / std_F).clamp(-FAR, FAR).nan_to_num(0.0)


def _separations(scores_MW: Tensor, examples: Examples, counted_M: Tensor) -> Tensor:
    """How far (W,) the pool lies above unseen labeled images, by the images of `counted_M`."""
    labeled, pool = examples.labeled & counted_M, examples.pool & counted_M
    found = torch.zeros(scores_MW.shape[1], dtype=torch.float64, device=scores_MW.device)
    if labeled.any() and pool.any():
        for w, scores_M in enumerate(scores_MW.T.contiguous()):
            found[w] = excess(scores_M[pool], scores_M[labeled])
    return found
