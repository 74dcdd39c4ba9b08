"""Batch norm with separate batch statistics for the images of the two heads.

The statistics of synthetic images differ from those of real ones, especially if they show other things. Real images
that are normalized together with synthetic ones look different in training than in a test on real images only. Where
contamination does harm, even a perfect route gained almost nothing without separate statistics (docs/log.md). So each
route has its own statistics, and only those of the real route enter the running statistics, which evaluation uses. Xie
et al. (arXiv 1911.09665) do the same for adversarial examples.

Batch norm removes whatever most of the batch has in common. If most synthetic images show one class, it removes that
class, and their pseudo-labels become wrong. `synthetic_targets = "running"` therefore computes pseudo-labels with the
running statistics, as at test time. However, these come from real images: if the synthetic images are spread evenly
over the classes, the labels are worse than with their own statistics (docs/log.md).

Shape suffixes: B images, C channels, G groups (real, synthetic; in the normalization also as tested).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.classifier import Heads, TwoHeaded
from models.ranks import sum_over, world_size

REAL, SYNTHETIC, AS_TESTED = range(3)


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm with separate statistics for each group of images, over all ranks.

    Images AS_TESTED do not enter any statistics and are normalized by the running ones. With `group` shapes do not
    depend on the groups, and nothing waits for a GPU. `sizes` is faster: the batch is in the order of the groups, and
    PyTorch's own kernels normalize each part. While both are None, all images are REAL.
    """

    group: Tensor | None = None  # (B,) int64
    sizes: tuple[int, int, int] | None = None  # how many images are REAL, SYNTHETIC and AS_TESTED

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.sizes is not None:
            return self._by_parts(input, self.sizes)
        if not self.training or (self.group is None and world_size() == 1):
            return super().forward(input)
        group_B = torch.full_like(input[:, 0, 0, 0], REAL, dtype=torch.int64) if self.group is None else self.group
        values = input.float()
        variance_BC, mean_BC = torch.var_mean(values, (2, 3), correction=0)
        is_in_GB1 = torch.stack((group_B == REAL, group_B == SYNTHETIC)).float()[..., None]
        count_G1 = sum_over(is_in_GB1.sum(1))

        def group_means(values_BC: Tensor) -> Tensor:
            # No matrix product: autocast would round it. No image is normalized by the statistics of an empty group.
            return sum_over((is_in_GB1 * values_BC).sum(1)) / count_G1.clamp(min=1)

        mean_GC = group_means(mean_BC)
        # Around the mean: if a channel hardly varies, the difference of two large squares would be a rounding error.
        variance_GC = group_means(variance_BC + (mean_BC - mean_GC[group_B.clamp(max=SYNTHETIC)]).square())
        self._follow(mean_GC[REAL], variance_GC[REAL], count_G1[REAL, 0] * values[0, 0].numel())
        assert self.running_mean is not None and self.running_var is not None
        mean_GC = torch.cat((mean_GC, self.running_mean[None]))
        variance_GC = torch.cat((variance_GC, self.running_var[None]))
        weight, bias = (self.weight, self.bias) if self.affine else (1.0, 0.0)
        scale_GC = (variance_GC + self.eps).rsqrt() * weight
        shift_GC = bias - mean_GC * scale_GC
        output = (values * scale_GC[group_B, :, None, None] + shift_GC[group_B, :, None, None]).to(input.dtype)
        return output

    def _by_parts(self, input: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        # Parts without an image would have gradients in another memory format, which the others would be copied to.
        groups = [group for group, size in enumerate(sizes) if size]
        parts = torch.split(input, [sizes[group] for group in groups])
        outputs = []
        for group, part in zip(groups, parts, strict=True):
            if group == AS_TESTED:
                arguments = (self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
                outputs.append(F.batch_norm(part, *arguments))
            elif group == SYNTHETIC:
                outputs.append(self._normalized(part, None, None))
            else:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                outputs.append(self._normalized(part, self.running_mean, self.running_var))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _normalized(self, part: Tensor, mean_C: Tensor | None, variance_C: Tensor | None) -> Tensor:
        assert self.momentum is not None
        arguments = (mean_C, variance_C, self.weight, self.bias, True, self.momentum, self.eps)
        if part[:, 0].numel() == 1:  # PyTorch refuses to normalize a single value per channel
            return F.batch_norm(part.repeat(2, 1, 1, 1), *arguments)[:1]
        return F.batch_norm(part, *arguments)

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        rate = self.momentum * (count > 0)
        unbiased_C = variance_C * count / (count - 1).clamp(min=1)
        self.running_mean.add_(rate * (mean_C - self.running_mean))
        self.running_var.add_(rate * (unbiased_C - self.running_var))
        self.num_batches_tracked += (count > 0).long()


class _SplitBatchNormAct(SplitBatchNorm):
    """timm's batch norm, which includes an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def split(classifier: TwoHeaded) -> None:
    """Turn the batch norms into split ones, except in a single process on a CPU, where `apart` has a cheaper way."""
    if world_size() > 1 or next(classifier.parameters()).is_cuda:
        split_all(classifier)


def synchronize(network: nn.Module) -> None:
    """Let batch norms see the global batch of all ranks. PyTorch's own synchronized batch norm only runs on GPUs."""
    if world_size() == 1:
        return
    if next(network.parameters()).is_cuda:
        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        split_all(network)


def split_all(network: nn.Module) -> None:
    """Turn all batch norms into split ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _SplitBatchNormAct if isinstance(module, BatchNormAct2d) else SplitBatchNorm


def apart(classifier: TwoHeaded, images_BCHW: Tensor, group_B: Tensor, *, by_mask: bool | None = None) -> Heads:
    """Logits of both heads for a training batch, normalized by group: REAL, SYNTHETIC or AS_TESTED, (B,) int64.

    The logits of images AS_TESTED may lack a gradient, because they only serve as targets. Split batch norms go
    `by_mask` where shapes must stay: by default in a compiled network, and with several ranks.
    """
    norms = [module for module in classifier.modules() if isinstance(module, _BatchNorm)]
    split_norms = [module for module in norms if isinstance(module, SplitBatchNorm)]
    if by_mask is None:  # a compiled network would be compiled again for each new size of the groups
        by_mask = world_size() > 1 or getattr(classifier, "_compiled_call_impl", None) is not None
    if split_norms and not by_mask:
        return _by_parts(classifier, split_norms, images_BCHW, group_B)
    if split_norms or not norms:
        for norm in split_norms:
            norm.group = group_B
        heads: Heads = classifier(images_BCHW)
        for norm in split_norms:
            norm.group = None
        return heads
    # On a CPU the counts are known, and one pass per group costs no more than one pass for all.
    rows = [(group_B == group).nonzero().squeeze(1) for group in (REAL, SYNTHETIC, AS_TESTED)]
    passes = [_pass(classifier, images_BCHW, rows[REAL])]
    with _running_statistics_kept(norms):
        passes.append(_pass(classifier, images_BCHW, rows[SYNTHETIC]))
    with torch.no_grad():
        passes.append(_pass(classifier.eval(), images_BCHW, rows[AS_TESTED]))
    classifier.train()
    back = torch.cat(rows).argsort()
    return Heads(*(torch.cat(logits)[back] for logits in zip(*passes, strict=True)))


def _by_parts(classifier: TwoHeaded, norms: Sequence[SplitBatchNorm], images_BCHW: Tensor, group_B: Tensor) -> Heads:
    """One pass of the images in the order of their groups. The host waits once, for the sizes of the groups."""
    order = group_B.argsort(stable=True)
    groups = torch.arange(AS_TESTED + 1, device=group_B.device)
    real, synthetic, as_tested = (group_B == groups[:, None]).sum(1).tolist()
    for norm in norms:
        norm.sizes = real, synthetic, as_tested
    heads: Heads = classifier(images_BCHW[order])
    for norm in norms:
        norm.sizes = None
    back = order.argsort()
    return Heads(*(logits[back] for logits in heads))


def _pass(classifier: TwoHeaded, images_BCHW: Tensor, rows: Tensor) -> Heads:
    """Logits of the images at `rows`, of which there may be none."""
    if not len(rows):
        return Heads(
            *(
                images_BCHW.new_empty((0, head.out_features), dtype=torch.float32)
                for head in (classifier.real, classifier.dummy)
            )
        )
    # PyTorch refuses to normalize a single value per channel, to which deep networks reduce a single small image.
    heads: Heads = classifier(images_BCHW[rows if len(rows) > 1 else rows.repeat(2)])
    return Heads(*(logits[: len(rows)] for logits in heads))


@contextmanager
def _running_statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
