"""RSMatch: semi-supervised learning from a pool that synthetic images have contaminated (arXiv 2405.16930).

A detector says for each unlabeled image whether it is real or synthetic. Real ones train the real head by
self-training, as FixMatch does (arXiv 2001.07685); synthetic ones train the dummy head. Only the real head predicts, so
that synthetic images reach what it says through the backbone alone. The detector is trained at the same time: its real
examples are the labeled images, its synthetic ones come from the class-wise synthetic queue (`models.csqueue`).

Notation: labeled X of B images x with classes y; unlabeled U of M images u; weak view w, strong view A; p_r and p_d the
softmax of the real and the dummy head; D the detector, s(u) its probability that u is synthetic; tau the confidence
threshold; r(p) the weight of a pseudo-label, [max p >= tau] in FixMatch (the others are in `models.rules`).

    sup_real   = mean CE(p_r(w x), y)                        sup_dummy = mean CE(p_d(w x), y)
    g(u)       = [s(u) >= rho]                               1 = goes to the dummy head; no gradient; rho <= 0.5
    self_real  = 1/R sum (1 - g) r(p_r(w u)) CE(p_r(A u), argmax p_r(w u))      R = sum 1 - g, at least M / 10
    self_dummy = 1/M sum      g  r(p(w u)) CE(p_d(A u), argmax p(w u))          p = p_r or p_d, who labels for p_d
    det_sup    = mean CE(D(v x), real) + mean CE(D(v q), synthetic)      q of the queue, each class equally often
    det_cons   = 1/M sum [max(s, 1 - s) >= tau] CE(D(v u), [s >= 0.5])

The paper's equations are not public: the losses follow its text and figures, and where these are silent the nearest
literature. The detector's own view v is a weak one, mostly resampled, and sharper or softer; s(u) is what D's average
says of w u. Ours are the start by residual statistics (`models.residual`), which go on to say their part in s(u) and
estimate which share of the pool is synthetic; the cut that this estimate gives s(u), rho and the queue (`Cut`), where
the paper's rho would be 0.5; real images that the start is sure of as further examples; what a person marked
(`Trusted`); batch statistics apart by route (`models.norms`); and R in the place of M, so that contamination does not
weaken what the real images teach. Without the last two a perfect route rescued nothing where contamination does harm
(docs/log.md).
FixMatch is the case g = 0 without a dummy head; supervised training is the case without U. For comparison, g may come
from the truth or be shuffled (`Recipe.routing`), and D may learn from other examples (`Recipe.detector_examples`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import augment, ema, norms, openset, residual, rules
from models.csqueue import CSQueue
from models.cut import Cut
from models.networks import Classifier, Detector, Heads, set_norm_momentum
from models.ranks import ALONE, Ranks, Rng
from models.rules import FixMatch
from models.schedule import cosine
from models.trusted import Trusted

DETECTOR_SETTLES = 100  # steps before queue and routes listen to a detector: an untrained one has a random sign
DETECTOR_RATE = 2e-3
DETECTOR_DECAY = 0.995  # of its average
# Raised by a change after which the same settings train another network, so that results from before and after it are
# not compared.
CLASSIFIER_REVISION = 1
DETECTOR_REVISION = 2
LEAST_REAL = 0.1  # share of a batch from which self-training of the real head counts in full
SYNTHETIC_FROM = 0.5  # probability of being synthetic from which an image is called so

Head = Literal["real", "dummy"]
Statistics = Literal["batch", "running"]
# Who decides what goes to the dummy head: the detector; the truth ("oracle"); or the truth, shuffled within the batch
# ("random"), which an extra head by itself would gain from as well. Only the first trains a detector.
Routing = Literal["detector", "oracle", "random"]
# What the detector takes for synthetic: entries of the class-wise queue, of one queue for all classes, what is left of
# the pool by nnPU, or the truth. The last two need no queue.
Examples = Literal["queue", "global-queue", "nnpu", "truth"]


class ClassifierLoss(NamedTuple):
    """Terms of the classifier's loss (0-d) and what the step saw of the unlabeled batch."""

    sup_real: Tensor
    sup_dummy: Tensor
    self_real: Tensor
    self_dummy: Tensor
    pseudo_labels: Tensor  # (M,) int64, argmax p_r(w u): the pseudo-classes of the queue
    confidence: Tensor  # (M,) max p_r(w u)
    weight: Tensor  # (M,) of the pseudo-label by the head that the image was routed to, 0..1
    penalty: Tensor  # further loss of the rules

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.sup_real + self.sup_dummy + self.self_real + self.self_dummy + self.penalty


def supervised_loss(classifier: Classifier, labeled_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    """sup_real alone: the baseline without unlabeled images."""
    return F.cross_entropy(classifier(labeled_BCHW).real, labels_B)


def classifier_loss(
    classifier: Classifier,
    labeled_BCHW: Tensor,
    labels_B: Tensor,
    weak_MCHW: Tensor,
    strong_MCHW: Tensor,
    rows_M: Tensor,
    synthetic_M: Tensor | None,
    rules: Sequence[FixMatch],
    *,
    weak_gradient: bool = True,
    dummy_weight: float = 1.0,
    dummy_labels: Head = "dummy",
    split_norms: bool = True,
    synthetic_targets: Statistics = "batch",
    ranks: Ranks = ALONE,
) -> ClassifierLoss:
    """Losses of both heads on uint8 views; `synthetic_M` is the route g(u) as bool, None for FixMatch.

    `rows_M` are the unlabeled images' dataset indices; `rules` weigh the pseudo-labels of the real and the dummy head.
    `dummy_labels` says which head gives those from which the dummy head learns. With a `dummy_weight` of 0 what goes to
    the dummy head teaches nothing: it is discarded.
    One forward pass for all views, so that they share the batch norm's statistics, as FixMatch implementations do; but
    with `split_norms` what goes to the dummy head has statistics of its own, by which its pseudo-labels are read, too,
    unless `synthetic_targets` says otherwise (`models.norms`). The weak views' logits are only ever targets: without
    `weak_gradient` they go through a pass of their own that keeps no graph, which saves a third of the arithmetic but
    gives them statistics of their own, too.
    """
    to_real = torch.ones_like(rows_M, dtype=torch.bool) if synthetic_M is None else ~synthetic_M
    labeled_B = torch.full_like(labels_B, norms.REAL)
    strong_M = torch.where(to_real, norms.REAL, norms.SYNTHETIC)
    weak_M = torch.where(to_real, norms.REAL, norms.AS_TESTED) if synthetic_targets == "running" else strong_M

    def forward(*views: tuple[Tensor, Tensor]) -> Heads:
        images, groups = (torch.cat(parts) for parts in zip(*views, strict=True))
        if synthetic_M is None or not split_norms:
            heads: Heads = classifier(images)
            return heads
        return norms.apart(classifier, images, groups)

    labeled, weak, strong = (labeled_BCHW, labeled_B), (weak_MCHW, weak_M), (strong_MCHW, strong_M)
    sizes = [len(labeled_BCHW), len(weak_MCHW), len(strong_MCHW)]
    if weak_gradient:
        heads = forward(labeled, weak, strong)
        real, real_weak, real_strong = torch.split(heads.real, sizes)
        dummy, dummy_weak, dummy_strong = torch.split(heads.dummy, sizes)
    else:
        heads = forward(labeled, strong)
        real, real_strong = torch.split(heads.real, sizes[::2])
        dummy, dummy_strong = torch.split(heads.dummy, sizes[::2])
        with torch.no_grad():  # second: autocast would hand weights that it rounded here, without a graph, to the first
            real_weak, dummy_weak = forward(weak)

    sup_real = F.cross_entropy(real, labels_B)
    self_real, weight, penalty = _self_training(real_weak, real_strong, rows_M, to_real, rules[0])
    # Contamination must not weaken what the real images teach; of a few they do not teach as much as of all.
    self_real = self_real / ranks.gather(to_real.float()).mean().clamp(min=LEAST_REAL)
    sup_dummy = self_dummy = torch.zeros_like(sup_real)
    if synthetic_M is not None:
        self_dummy, weight_dummy, penalty_dummy = _self_training(
            real_weak if dummy_labels == "real" else dummy_weak, dummy_strong, rows_M, synthetic_M, rules[1]
        )
        sup_dummy, self_dummy = dummy_weight * F.cross_entropy(dummy, labels_B), dummy_weight * self_dummy
        weight, penalty = weight + weight_dummy, penalty + dummy_weight * penalty_dummy
    confidence, pseudo_labels = real_weak.detach().softmax(1).max(1)
    return ClassifierLoss(sup_real, sup_dummy, self_real, self_dummy, pseudo_labels, confidence, weight, penalty)


def queue_risk(real_B: Tensor, queued_Q: Tensor) -> Tensor:
    """det_sup from logits of real examples and of the queue's entries."""
    # CE(D, real) = -log(1 - s) = softplus(logit), CE(D, synthetic) = softplus(-logit)
    return F.softplus(real_B).mean() + F.softplus(-queued_Q).mean()


def nnpu_risk(real_B: Tensor, unlabeled_M: Tensor, share_real: float, ranks: Ranks = ALONE) -> Tensor:
    """Non-negative risk from real examples and unlabeled images alone (nnPU, arXiv 1703.00593, algorithm 1).

    `share_real` is the prior: which share of the unlabeled images is real. Where the estimate of the synthetic side's
    risk falls below zero, overfitting has begun, and the step goes back up.
    """
    real, not_real = share_real * F.softplus(real_B).mean(), share_real * F.softplus(-real_B).mean()
    synthetic = F.softplus(-unlabeled_M).mean() - not_real
    return torch.where(ranks.gather(synthetic.detach()[None]).mean() >= 0, real + synthetic, -synthetic)


def true_risk(real_B: Tensor, unlabeled_M: Tensor, synthetic_M: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean cross-entropy of real and of synthetic images, the unlabeled ones by the truth: the upper bound."""
    known = synthetic_M.float()
    real = F.softplus(real_B).sum() + (F.softplus(unlabeled_M) * (1 - known)).sum()
    synthetic = (F.softplus(-unlabeled_M) * known).sum()
    count = ranks.gather(known).sum() / ranks.world  # of all ranks, for each of them
    return real / (len(real_B) + len(known) - count) + synthetic / count.clamp(min=1 / ranks.world)


def consistency(logits_M: Tensor, prob_synthetic_M: Tensor, threshold: float) -> Tensor:
    """det_cons from the logits of one view and the probabilities s(u) that the average gave another."""
    confident = torch.maximum(prob_synthetic_M, 1 - prob_synthetic_M) >= threshold
    target = (prob_synthetic_M >= 0.5).float()
    return (F.binary_cross_entropy_with_logits(logits_M, target, reduction="none") * confident).mean()


def _self_training(
    weak_MK: Tensor, strong_MK: Tensor, rows_M: Tensor, counted_M: Tensor, rule: FixMatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of one head to its own pseudo-labels, averaged over all M; their weights; the rule's penalty."""
    probs = weak_MK.detach().softmax(1)
    weight = rule.weigh(probs, rows_M, counted_M)
    loss = (F.cross_entropy(strong_MK, probs.argmax(1), reduction="none") * weight).mean()
    return loss, weight, rule.penalty(strong_MK, weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train; the defaults are FixMatch's for CIFAR-10 (arXiv 2001.07685) and the paper's where it says."""

    method: Literal["rsmatch", "fixmatch", "openmatch", "iomatch", "supervised"] = "rsmatch"
    rule: rules.Name = "fixmatch"
    routing: Routing = "detector"
    dummy_weight: float = 1.0  # of the dummy head's losses; 0 discards what is routed to it
    dummy_labels: Head = "dummy"  # which head makes the dummy head's pseudo-labels
    detector_examples: Examples = "queue"
    share_real: float | None = None  # of the pool, which nnPU has to be told
    detector_init: Literal["features", "random"] = "features"
    num_steps: int = 2**20
    warmup: float = 0.05  # share of the steps in which everything goes to the real head
    threshold: float = 0.95  # tau
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema_decay: float = 0.999
    norm_momentum: float = 0.001
    split_norms: bool = True  # batch statistics apart by route; False: shared, as in FixMatch
    synthetic_targets: Statistics = "batch"  # by which synthetic images' pseudo-labels are read, with these apart
    weak_gradient: bool = True  # False: weak views in a forward pass of their own, a third cheaper
    queue_length: int = 256  # L, of each class
    queue_classes: int = 2  # P
    queue_per_class: int = 1  # Q

    @property
    def warmup_steps(self) -> int:
        """Steps of plain FixMatch at the start."""
        return round(self.warmup * self.num_steps)

    @property
    def has_detector(self) -> bool:
        """Whether a detector is trained: the baselines have none, and the controls that read the truth need none."""
        return self.method == "rsmatch" and self.routing == "detector"

    @property
    def revision(self) -> str:
        """Revision of what is trained, classifier.detector, or of the classifier alone."""
        return f"{CLASSIFIER_REVISION}.{DETECTOR_REVISION}" if self.has_detector else str(CLASSIFIER_REVISION)

    @property
    def has_queue(self) -> bool:
        """Whether the detector learns from a queue."""
        return self.detector_examples in ("queue", "global-queue")

    @property
    def needs_bootstrap(self) -> bool:
        """Whether residual statistics fill the queue before the detector's first step."""
        return self.has_detector and self.has_queue and self.detector_init == "features"

    @property
    def needs_truth(self) -> bool:
        """Whether the batches must say which images are synthetic: controls and upper bounds alone do."""
        return self.method == "rsmatch" and (self.routing != "detector" or self.detector_examples == "truth")

    @property
    def detector_start(self) -> int:
        """First step of the detector: features wait for pseudo-classes that mean something."""
        return self.warmup_steps if self.needs_bootstrap else 0

    @property
    def routing_start(self) -> int:
        """First step in which images may go to the dummy head."""
        settled = self.detector_start + DETECTOR_SETTLES if self.has_detector else 0
        return max(self.warmup_steps, settled)


class Batch(NamedTuple):
    """One step's data: uint8 images for the classifier and native tiles for the detector, and the rows they are."""

    labeled: Tensor  # (B, 3, S, S)
    labeled_tiles: Tensor  # (B, 3, T, T)
    labels: Tensor  # (B,) int64
    unlabeled: Tensor  # (M, 3, S, S)
    unlabeled_tiles: Tensor  # (M, 3, T, T)
    rows: Tensor  # (M,) int64, dataset indices of the unlabeled images
    synthetic: Tensor | None = None  # (M,) bool, the truth, where the recipe needs it


class RSMatch:
    """Networks, averages, optimizers, rules and queue, and the step that trains them. A plain loop calls `step`."""

    def __init__(
        self,
        recipe: Recipe,
        classifier: Classifier,
        detector: Detector,
        autocast: AbstractContextManager[object],
        *,
        num_images: int,
        ranks: Ranks = ALONE,
    ) -> None:
        device = next(classifier.parameters()).device
        self.recipe = recipe
        set_norm_momentum(classifier, recipe.norm_momentum)
        self.classifier_ema = ema.shadow(classifier)
        self.detector_ema = ema.shadow(detector)
        if recipe.method == "rsmatch" and recipe.split_norms:
            norms.split(classifier, ranks)
        else:
            norms.synchronize(classifier, ranks)
        norms.synchronize(detector, ranks)
        self.classifier = classifier.train()
        self.detector = detector.train()
        num_classes = classifier.real.out_features
        self.open = openset.build(
            recipe.method,
            classifier.num_features,
            num_classes,
            threshold=recipe.threshold,
            weak_gradient=recipe.weak_gradient,
            ranks=ranks,
        )
        trained = nn.ModuleList([classifier] if self.open is None else [classifier, self.open.to(device)])
        self.classifier_optimizer = torch.optim.SGD(
            _decay_weights_only(trained, recipe.weight_decay),
            momentum=recipe.momentum,
            nesterov=True,
            lr=1.0,
            fused=True,
        )
        self.detector_optimizer = torch.optim.AdamW(_decay_weights_only(detector, 0.01), lr=1.0, fused=True)
        if recipe.detector_examples == "global-queue":
            self.queue = CSQueue(1, num_classes * recipe.queue_length).to(device)
        else:
            self.queue = CSQueue(num_classes, recipe.queue_length).to(device)
        self.rules = tuple(
            rules.build(
                recipe.rule, threshold=recipe.threshold, num_classes=num_classes, num_images=num_images, ranks=ranks
            ).to(device)
            for _head in ("real", "dummy")
        )
        self.cut = Cut().to(device)
        self.statistics = residual.Score().to(device)
        # Dataset indices of images that the bootstrap found most real: examples for the detector beside the labeled
        # ones, which are few and soon memorized.
        self.confident_real = torch.empty(0, dtype=torch.int64, device=device)
        self.trusted: Trusted | None = None  # whoever has marks sets it before the first step
        self._autocast = autocast
        self._cuda_graphs = False
        self._ranks = ranks

    def compile(self, *, cuda_graphs: bool) -> None:
        """Compile the networks by torch.compile; with `cuda_graphs` a GPU replays each pass as one graph, which pays
        where launching kernels takes longer than running them. A CPU has no such thing and ignores it.
        """
        for network in (self.classifier, self.detector):
            network.compile(mode="reduce-overhead" if cuda_graphs else "default")
        self._cuda_graphs = cuda_graphs

    def step(self, number: int, batch: Batch, fetch_tiles: Callable[[Tensor], Tensor], rng: Rng) -> dict[str, Tensor]:
        """Train on one batch; `fetch_tiles` gives the tiles of queued rows. Returns figures as tensors, unsynced."""
        recipe = self.recipe
        if self._cuda_graphs:
            # What the last step's graphs hold may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        rate = cosine(number, recipe.num_steps, recipe.learning_rate)
        labeled = augment.weak(batch.labeled, rng)
        if recipe.method == "supervised":
            with self._autocast:
                loss = supervised_loss(self.classifier, labeled, batch.labels)
            self._update_classifier(loss, rate, number)
            return {"sup_real": loss.detach()}
        if self.open is not None:
            with self._autocast:
                open_losses = self.open.losses(
                    self.classifier,
                    labeled,
                    batch.labels,
                    [augment.weak(batch.unlabeled, rng) for _ in range(self.open.num_weak)],
                    augment.strong(batch.unlabeled, rng),
                    warmed_up=number >= recipe.warmup_steps,
                )
            self._update_classifier(open_losses.total, rate, number)
            return open_losses.figures

        synthetic = prob_synthetic = None
        if recipe.has_detector:
            with torch.no_grad():
                logits = self.detector_ema(augment.weak(batch.unlabeled_tiles, rng))
                suspicion = self._suspicion(logits, batch.unlabeled_tiles)
                prob_synthetic = (suspicion - self.cut.suspicion).sigmoid()
                if self.trusted:
                    prob_synthetic = self.trusted.settle(batch.rows, prob_synthetic, 0.0, 1.0)
                if number >= recipe.detector_start:
                    self.cut.follow(self._ranks.gather(logits), self._ranks.gather(suspicion))
        if recipe.method == "rsmatch":
            synthetic = self._route(number, batch, prob_synthetic, rng)

        with self._autocast:
            losses = classifier_loss(
                self.classifier,
                labeled,
                batch.labels,
                augment.weak(batch.unlabeled, rng),
                augment.strong(batch.unlabeled, rng),
                batch.rows,
                synthetic,
                self.rules,
                weak_gradient=recipe.weak_gradient,
                dummy_weight=recipe.dummy_weight,
                dummy_labels=recipe.dummy_labels,
                split_norms=recipe.split_norms,
                synthetic_targets=recipe.synthetic_targets,
                ranks=self._ranks,
            )
        self._update_classifier(losses.total, rate, number)
        num_classes = self.classifier.real.out_features
        figures = {
            "sup_real": losses.sup_real.detach(),
            "self_real": losses.self_real.detach(),
            "confidence": losses.confidence.mean(),
            "confident_share": losses.weight.mean(),
            "pseudo_label_share": F.one_hot(losses.pseudo_labels, num_classes).float().mean(0),
        }
        if synthetic is not None:
            figures |= {
                "sup_dummy": losses.sup_dummy.detach(),
                "self_dummy": losses.self_dummy.detach(),
                "dummy_share": synthetic.float().mean(),
            }
        if prob_synthetic is not None and number >= recipe.detector_start:
            figures |= self._detect(number, batch, prob_synthetic, losses.pseudo_labels, fetch_tiles, rng)
        return figures

    def _suspicion(self, logits_M: Tensor, tiles_MCHW: Tensor) -> Tensor:
        """Logits (M,) of being synthetic by which training goes: the detector's, and as much of the statistics' score.

        They err elsewhere, so that both together know more than either. And the statistics may look at what the
        detector must not see, how sharp an image is, and so teach it more than it would find out by itself.
        """
        if not self.recipe.needs_bootstrap:
            return logits_M
        scores_M: Tensor = self.statistics(tiles_MCHW)
        return logits_M + self._ranks.gather(logits_M).std(correction=0) * scores_M

    def _route(self, number: int, batch: Batch, prob_synthetic: Tensor | None, rng: Rng) -> Tensor:
        """Which unlabeled images go to the dummy head: g(u), (M,) bool."""
        recipe = self.recipe
        if prob_synthetic is not None:
            synthetic = prob_synthetic >= (self.cut.route - self.cut.suspicion).sigmoid()
        else:
            assert batch.synthetic is not None
            synthetic = batch.synthetic
        if recipe.routing == "random":
            order = self._ranks.gather(rng.uniform(len(synthetic))).argsort()
            synthetic = self._ranks.own(self._ranks.gather(synthetic.float())[order]) > 0
        return synthetic & (number >= recipe.routing_start)

    def _detect(
        self,
        number: int,
        batch: Batch,
        prob_synthetic: Tensor,
        pseudo_labels: Tensor,
        fetch_tiles: Callable[[Tensor], Tensor],
        rng: Rng,
    ) -> dict[str, Tensor]:
        """Train the detector on labeled, queued and unlabeled tiles."""
        recipe, age, trusted = self.recipe, number - self.recipe.detector_start, self.trusted
        settled = age >= DETECTOR_SETTLES
        sure = prob_synthetic >= (self.cut.sure - self.cut.suspicion).sigmoid()
        real, queued = [batch.labeled_tiles], batch.labeled_tiles[:0]
        if recipe.has_queue:
            if settled or not recipe.needs_bootstrap:
                # An untrained detector has a random sign: until it has settled, the queue is filled at random.
                score = prob_synthetic.masked_fill(~sure, -torch.inf) if settled else rng.uniform(len(batch.rows))
                if trusted:
                    score = trusted.settle(batch.rows, score, -torch.inf, 1.0)  # -inf is never pushed
                self._enqueue(batch.rows, score, pseudo_labels, rng)
            count = len(batch.labeled_tiles)
            rows = [self._ranks.own(self.queue.draw(count * self._ranks.world, rng.generator))]
            if trusted and len(trusted.synthetic):
                drawn, taken = trusted.draw(trusted.synthetic, count, rng)
                rows[0] = torch.where(taken, drawn, rows[0])
            if len(self.confident_real):
                rows.append(self.confident_real[rng.integers(0, len(self.confident_real), count)])
            if trusted and len(trusted.real):
                drawn, taken = trusted.draw(trusted.real, count, rng)
                rows.append(drawn)
            queued, *further = torch.split(fetch_tiles(torch.cat(rows)), count)
            if trusted and len(trusted.real):
                real = [torch.where(taken[:, None, None, None], further.pop(), batch.labeled_tiles)]
            real += further
        # A detector that may see how an image was scaled is shown it as it was scaled.
        views = [
            augment.detector(tiles, rng, resample=self.detector.equalizes)
            for tiles in (*real, queued, batch.unlabeled_tiles)
        ]
        logits = self.detector(torch.cat(views))
        real_B, queued_Q, unlabeled_M = logits.split((sum(map(len, real)), len(queued), len(batch.unlabeled_tiles)))
        match recipe.detector_examples:
            case "queue" | "global-queue":
                sup = queue_risk(real_B, queued_Q)
            case "nnpu":
                assert recipe.share_real is not None
                sup = nnpu_risk(real_B, unlabeled_M, recipe.share_real, self._ranks)
            case "truth":
                assert batch.synthetic is not None
                sup = true_risk(real_B, unlabeled_M, batch.synthetic, self._ranks)
        # Consistency with a teacher that has not settled would teach its random sign.
        cons = consistency(unlabeled_M, prob_synthetic, recipe.threshold) * float(settled)
        rate = cosine(number, recipe.num_steps, DETECTOR_RATE)
        self._descend(self.detector_optimizer, sup + cons, rate)
        ema.update(self.detector_ema, self.detector, ema.decay_at(age, DETECTOR_DECAY))
        figures = {"detector_sup": sup.detach(), "detector_cons": cons.detach()}
        if recipe.has_queue:
            figures["queue_score"] = self.queue.mean_score()
            figures["queue_filled"] = self.queue.size.float().mean() / self.queue.index.shape[1]
        return figures

    def _enqueue(self, rows: Tensor, score: Tensor, pseudo_labels: Tensor, rng: Rng) -> None:
        recipe = self.recipe
        self.queue.push(
            *(self._ranks.gather(part) for part in (rows, score, self._sub_queue(pseudo_labels))),
            num_classes=recipe.queue_classes,
            # One queue takes what the sub-queues of P classes would.
            per_class=recipe.queue_per_class * (1 if len(self.queue.size) > 1 else recipe.queue_classes),
            rng=rng.generator,
        )

    def _sub_queue(self, pseudo_labels: Tensor) -> Tensor:
        """Sub-queue of each pseudo-label: its class's own, or the one for all."""
        return pseudo_labels.clamp(max=len(self.queue.size) - 1)

    def _update_classifier(self, loss: Tensor, rate: float, number: int) -> None:
        self._descend(self.classifier_optimizer, loss, rate)
        ema.update(self.classifier_ema, self.classifier, ema.decay_at(number, self.recipe.ema_decay))

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = []
        for group in optimizer.param_groups:
            group["lr"] = rate
            gradients += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        self._ranks.average_(gradients)
        optimizer.step()

    def bootstrap(
        self,
        rows_N: Tensor,
        statistics_N: Tensor,
        statistics_labeled: Tensor,
        pseudo_labels_N: Tensor,
        rng: torch.Generator,
    ) -> None:
        """Fill the queue, find confident real images and estimate the synthetic share.

        `statistics_*` are what `residual.statistics` gives for tiles of the pool and of the labeled set.
        """
        classes_N = self._sub_queue(pseudo_labels_N)
        start = residual.bootstrap(statistics_N, statistics_labeled, classes_N, len(self.queue.size), rng)
        scores_N, real_N, chosen_N = start.scores, start.real, start.synthetic
        if self.trusted:
            scores_N = self.trusted.settle(rows_N, scores_N, scores_N.min(), scores_N.max())
            real_N = self.trusted.settle(rows_N, real_N, True, False)
            chosen_N = self.trusted.settle(rows_N, chosen_N, False, True)
        if not chosen_N.any():  # of a pool of a few images
            chosen_N[scores_N.argmax()] = True
        self.statistics.settle(start.linear, statistics_N)
        self.queue.fill(rows_N[chosen_N], scores_N[chosen_N], classes_N[chosen_N])
        self.cut.settle(start.share_synthetic, start.share_interval)
        # GPUs sum in any order, and what one of them chooses all must hold.
        self._ranks.from_first_((real_N, *self.statistics.buffers(), *self.queue.buffers(), *self.cut.buffers()))
        self.confident_real = rows_N[real_N]


def _decay_weights_only(network: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: weight decay on weights, none on biases and batch norms, as FixMatch does."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
