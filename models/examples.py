"""What the detector learns from: labeled, queued, confident and marked images, as dataset indices."""

from collections.abc import Callable

import torch
from torch import Tensor

from models import ranks
from models.bootstrap import Bootstrap
from models.csqueue import CSQueue
from models.marked import Marked
from models.ranks import Rng
from models.recipe import Controls, Recipe


class Examples:
    """Examples of real and of synthetic images, chosen during training without a synthetic label."""

    def __init__(
        self, recipe: Recipe, controls: Controls, num_classes: int, marked: Marked | None, device: torch.device
    ) -> None:
        self._recipe, self._controls, self._marked = recipe, controls, marked
        self._pushed_classes = recipe.pushed_classes(num_classes)
        if controls.detector_examples == "global-queue":
            self.queue = CSQueue(1, num_classes * recipe.queue_length).to(device)
        else:
            self.queue = CSQueue(num_classes, recipe.queue_length).to(device)
        # Pool images that the bootstrap found most real: the labeled ones are few and soon memorized.
        self.confident_real = torch.empty(0, dtype=torch.int64, device=device)

    def fill(self, rows_N: Tensor, found: Bootstrap, queues_N: Tensor) -> None:
        """Fill the queue with what the bootstrap found most synthetic, and keep what it found most real."""
        scores_N, real_N, synthetic_N = found.scores, found.real, found.synthetic
        if self._marked:
            scores_N = self._marked.override(rows_N, scores_N, scores_N.min(), scores_N.max())
            real_N = self._marked.override(rows_N, real_N, True, False)
            synthetic_N = self._marked.override(rows_N, synthetic_N, False, True)
        if not synthetic_N.any():  # in a pool of few images
            synthetic_N[scores_N.argmax()] = True
        self.queue.fill(rows_N[synthetic_N], scores_N[synthetic_N], queues_N[synthetic_N])
        ranks.from_first_((real_N,))  # GPUs sum in any order, and all ranks must hold what one of them chooses
        if self._controls.confident_real:
            self.confident_real = rows_N[real_N]

    def push(self, rows_M: Tensor, score_M: Tensor, pseudo_labels_M: Tensor, rng: Rng) -> None:
        """Push the images of the highest scores into the sub-queues of P classes; a score of -inf is never pushed."""
        if self._marked:
            score_M = self._marked.override(rows_M, score_M, -torch.inf, 1.0)
        self.queue.push(
            *(ranks.gather(part) for part in (rows_M, score_M, self.sub_queue(pseudo_labels_M))),
            num_classes=self._pushed_classes,
            # One queue takes what the sub-queues of P classes would.
            per_class=self._recipe.queue_per_class * (1 if len(self.queue.size) > 1 else self._pushed_classes),
            rng=rng.generator,
        )

    def fetch(
        self, labeled_tiles: Tensor, fetch_tiles: Callable[[Tensor], Tensor], rng: Rng
    ) -> tuple[list[Tensor], Tensor]:
        """Tiles of real examples, a list of batches, and of synthetic ones.

        Marked images replace some of the labeled and of the queued ones; confident ones are a batch of their own.
        Controls without a queue have the labeled images alone.
        """
        if not self._controls.has_queue:
            return [labeled_tiles], labeled_tiles[:0]
        count = len(labeled_tiles)
        queued = ranks.own(self.queue.draw(count * ranks.world_size(), rng.generator))
        if self._marked and len(self._marked.synthetic):
            drawn, replaces = self._marked.draw(self._marked.synthetic, count, rng)
            queued = torch.where(replaces, drawn, queued)
        rows = {"queued": queued}
        if len(self.confident_real):
            rows["confident"] = self.confident_real[rng.integers(0, len(self.confident_real), count)]
        if self._marked and len(self._marked.real):
            rows["marked"], replaces = self._marked.draw(self._marked.real, count, rng)
        tiles = dict(zip(rows, torch.split(fetch_tiles(torch.cat(list(rows.values()))), count), strict=True))
        real = [labeled_tiles]
        if "marked" in tiles:
            real = [torch.where(replaces[:, None, None, None], tiles["marked"], labeled_tiles)]
        if "confident" in tiles:
            real.append(tiles["confident"])
        return real, tiles["queued"]

    def sub_queue(self, pseudo_labels: Tensor) -> Tensor:
        """Sub-queue of each pseudo-label: its class's own, or the one for all."""
        return pseudo_labels.clamp(max=len(self.queue.size) - 1)

    @property
    def figures(self) -> dict[str, Tensor]:
        """What is logged of the queue."""
        if not self._controls.has_queue:
            return {}
        filled = self.queue.size.float().mean() / self.queue.index.shape[1]
        return {"queue_score": self.queue.mean_score(), "queue_filled": filled}
