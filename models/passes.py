"""Forward pass of all views of a step through the classifier, with separate batch statistics for each route."""

from typing import NamedTuple

import torch
from torch import Tensor

from models import norms
from models.batch import Views
from models.classifier import Heads, TwoHeaded
from models.recipe import Controls


class ViewLogits(NamedTuple):
    """One head's logits of each kind of view."""

    labeled: Tensor  # (B, K)
    weak: Tensor  # (M, K)
    strong: Tensor  # (M, K)


def forward(
    classifier: TwoHeaded, views: Views, route_M: Tensor | None, controls: Controls
) -> tuple[ViewLogits, ViewLogits]:
    """Logits of the real and of the dummy head.

    All views go through one forward pass, so that they share the batch norm's statistics, as in FixMatch
    implementations; with `split_norms` each route has its own statistics (`models.norms`). The logits of the weak views
    only serve as targets. Without `weak_gradient` these views take a separate pass without a graph. This saves a third
    of the arithmetic, but also gives them separate statistics.
    """
    to_real_M = torch.ones_like(views.rows, dtype=torch.bool) if route_M is None else ~route_M
    groups_B = torch.full_like(views.labels, norms.REAL)
    groups_strong = torch.where(to_real_M, norms.REAL, norms.SYNTHETIC)
    as_tested = controls.synthetic_targets == "running"
    groups_weak = torch.where(to_real_M, norms.REAL, norms.AS_TESTED) if as_tested else groups_strong

    def passed(*parts: tuple[Tensor, Tensor]) -> Heads:
        images, groups = (torch.cat(column) for column in zip(*parts, strict=True))
        if route_M is None or not controls.split_norms:
            heads: Heads = classifier(images)
            return heads
        return norms.apart(classifier, images, groups)

    labeled, weak = (views.labeled, groups_B), (views.weak, groups_weak)
    strong, sizes = (views.strong, groups_strong), [len(views.labeled), len(views.weak), len(views.strong)]
    if controls.weak_gradient:
        real, dummy = (ViewLogits(*torch.split(logits, sizes)) for logits in passed(labeled, weak, strong))
        return real, dummy
    taught = [torch.split(logits, sizes[::2]) for logits in passed(labeled, strong)]
    with torch.no_grad():  # second: autocast would hand weights that it rounded here, without a graph, to the first
        targets = passed(weak)
    real, dummy = (ViewLogits(x, target, u) for (x, u), target in zip(taught, targets, strict=True))
    return real, dummy
