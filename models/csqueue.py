"""CSQueue: the class-wise synthetic queue from which the detector learns what synthetic images look like.

Each step pseudo-labels the unlabeled images of the batch, sorts them by the detector's score, and pushes the top Q of
each of P classes into the sub-queue of that class (arXiv 2405.16930, section on the detector and Fig. 4). The queue
holds dataset indices, not pixels, so that each draw augments its images anew. Shapes are fixed, and nothing waits for
the device.

Shape suffixes: B images of the batch, K classes, L slots of a sub-queue.
"""

import torch
from torch import Generator, Tensor, nn

EMPTY = -1


class CSQueue(nn.Module):
    """K sub-queues, first in first out, of L dataset indices each; all state is in buffers."""

    index: Tensor
    score: Tensor
    size: Tensor
    next: Tensor

    def __init__(self, num_classes: int, length: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.full((num_classes, length), EMPTY))
        self.register_buffer("score", torch.zeros(num_classes, length))
        self.register_buffer("size", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("next", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def push(
        self,
        index_B: Tensor,
        score_B: Tensor,
        pseudo_labels_B: Tensor,
        *,
        num_classes: int,
        per_class: int,
        rng: Generator,
    ) -> None:
        """Push the `per_class` (Q) highest scores of each of `num_classes` (P) classes of the batch.

        The classes with the emptiest sub-queues come first. Among equally full ones the choice is random for K <= 10;
        for more classes, those with the best candidate win. An index that is already in its sub-queue is not pushed
        again, and a score of -inf never is.
        """
        total, length = self.index.shape
        per_class = min(per_class, len(index_B))
        of_class_KB = torch.arange(total, device=self.index.device)[:, None] == pseudo_labels_B
        candidates = score_B.masked_fill(~of_class_KB, -torch.inf).topk(per_class, dim=1)
        best_K = candidates.values[:, 0]
        tie_K = torch.rand(total, generator=rng, device=self.index.device)
        if total > 10:
            tie_K = best_K.nan_to_num(neginf=0.0).sigmoid()
        urgency_K = (length - self.size).float() + tie_K  # a tie is below one free slot
        urgency_K = urgency_K.masked_fill(best_K == -torch.inf, -torch.inf)
        chosen = urgency_K.topk(min(num_classes, total)).indices
        for q in reversed(range(per_class)):  # the best candidate last, because it then stays longest
            self._put(chosen, index_B[candidates.indices[chosen, q]], candidates.values[chosen, q])

    def _put(self, classes: Tensor, index: Tensor, score: Tensor) -> None:
        length = self.index.shape[1]
        fresh = (score > -torch.inf) & (self.index[classes] != index[:, None]).all(1)
        slot = self.next[classes]
        self.index[classes, slot] = torch.where(fresh, index, self.index[classes, slot])
        self.score[classes, slot] = torch.where(fresh, score, self.score[classes, slot])
        self.next[classes] = (slot + fresh) % length
        self.size[classes] = (self.size[classes] + fresh).clamp(max=length)

    @torch.no_grad()
    def fill(self, index_N: Tensor, score_N: Tensor, pseudo_labels_N: Tensor) -> None:
        """Replace all entries by the highest scores of each class; the lowest of these will leave first."""
        self.size.zero_()
        self.next.zero_()
        self.index.fill_(EMPTY)
        total, length = self.index.shape
        for k in range(total):
            members = (pseudo_labels_N == k).nonzero().squeeze(1)
            best = members[score_N[members].argsort()][-length:]
            self.index[k, : len(best)] = index_N[best]
            self.score[k, : len(best)] = 1.0  # on the scale of probabilities: certain
            self.size[k] = len(best)
            self.next[k] = len(best) % length

    def mean_score(self) -> Tensor:
        """Mean score of all entries when they were pushed: a proxy of purity that needs no truth."""
        return (self.score * (self.index != EMPTY)).sum() / self.size.sum().clamp(min=1)

    @torch.no_grad()
    def draw(self, count: int, rng: Generator) -> Tensor:
        """Draw `count` dataset indices with replacement; all classes that have entries are equally likely.

        The queue must not be empty.
        """
        classes = torch.multinomial((self.size > 0).float(), count, replacement=True, generator=rng)
        uniform = torch.rand(count, generator=rng, device=self.index.device)
        size = self.size[classes]
        return self.index[classes, (uniform * size).long().clamp(max=size - 1)]
