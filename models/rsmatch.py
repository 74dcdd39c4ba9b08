"""RSMatch: semi-supervised learning from a pool that synthetic images have contaminated (arXiv 2405.16930).

A detector says for each unlabeled image whether it is real or synthetic. Real images train the real head by
self-training, as in FixMatch (arXiv 2001.07685); synthetic ones train the dummy head. Only the real head predicts, so
synthetic images influence its predictions through the backbone alone. The detector is trained at the same time: its
real examples are the labeled images, its synthetic ones come from the class-wise synthetic queue (`models.csqueue`).

Notation: labeled X of B images x with classes y; unlabeled U of M images u; weak view w, strong view A; p_r and p_d the
softmax of the real and the dummy head; D the detector, s(u) its probability that u is synthetic; tau the confidence
threshold; r(p) the weight of a pseudo-label, [max p >= tau] in FixMatch (others in `models.rules`).

    sup_real   = mean CE(p_r(w x), y)                        sup_dummy = mean CE(p_d(w x), y)
    g(u)       = [s(u) >= rho]                               True: goes to the dummy head; no gradient
    self_real  = 1/R sum (1 - g) r(p_r(w u)) CE(p_r(A u), argmax p_r(w u))      R = sum 1 - g, at least M / 10
    self_dummy = 1/M sum      g  r(p_d(w u)) CE(p_d(A u), argmax p_d(w u))
    det_sup    = mean CE(D(v x), real) + mean CE(D(v q), synthetic)      q of the queue, each class equally often
    det_cons   = 1/M sum [max(s, 1 - s) >= tau] CE(D(v u), [s >= 0.5])

The paper's equations are not public: the losses follow its text and figures, and the nearest literature where these are
silent. Beyond the paper we add, each but the last with a switch of its own in `models.recipe`: (1) a bootstrap of the
queue by residual features (`models.bootstrap`); (2) the residual score, added to the detector's logit: their sum, the
evidence, decides, and s is its sigmoid; (3) thresholds set by the estimated synthetic share instead of rho = 0.5
(`models.thresholds`); (4) pool images that the bootstrap is sure are real as further real examples; (5) residual planes
and (6) features as inputs of the detector, (7) whose images have an equalized spectrum and (8) resampled views v
(`models.detector`); (9) batch statistics apart by route (`models.norms`); (10) R instead of M; and (11) a person's
marks (`models.marked`).

On CIFAR-10 with Stable Diffusion 1.4 images (250 labels, a third of the pool synthetic), 800 steps on a CPU reach a
detector AUROC of .947 (three seeds, .944 to .953; docs/benchmarks.md). A golden 20-step curve guards refactorings.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from models import augment, bootstrap, norms, passes, ranks, rules
from models.batch import Batch, ClassifierLoss, Views
from models.classifier import TwoHeaded
from models.detector import Detector
from models.examples import Examples
from models.learner import Fitted, Learner, adamw, averaged, cosine, decay_at, sgd
from models.marked import Marked
from models.panel import Panel
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.residual import ResidualScore
from models.rules import FixMatch
from models.thresholds import Thresholds

DETECTOR_SETTLES = 100  # steps before queue and routes listen to a detector: an untrained one has a random sign
DETECTOR_RATE = 2e-3
DETECTOR_DECAY = 0.995  # of its average
LEAST_REAL = 0.1  # share of a batch from which self-training of the real head counts in full

FetchTiles = Callable[[Tensor], Tensor]  # dataset indices (N,) to native tiles (N, 3, T, T)
# The detector's supervised loss, from the logits of real examples, queue entries and unlabeled images.
Risk = Callable[[Tensor, Tensor, Tensor, Batch], Tensor]


def classifier_loss(
    classifier: TwoHeaded, views: Views, route_M: Tensor | None, rule: tuple[FixMatch, ...], controls: Controls
) -> ClassifierLoss:
    """Losses of both heads; `route_M` is g(u) as bool, None for FixMatch; a rule for each head.

    With a `dummy_weight` of 0 the images routed to the dummy head are discarded.
    """
    real, dummy = passes.forward(classifier, views, route_M, controls)
    to_real = torch.ones_like(views.rows, dtype=torch.bool) if route_M is None else ~route_M
    sup_real = F.cross_entropy(real.labeled, views.labels)
    self_real, weight, penalty = self_training(real.weak, real.strong, views.rows, to_real, rule[0])
    if controls.average_over_real:  # contamination must not weaken what the real images teach
        self_real = self_real / ranks.gather(to_real.float()).mean().clamp(min=LEAST_REAL)
    sup_dummy = self_dummy = torch.zeros_like(sup_real)
    if route_M is not None:
        targets = real.weak if controls.dummy_labels == "real" else dummy.weak
        self_dummy, weight_dummy, penalty_dummy = self_training(targets, dummy.strong, views.rows, route_M, rule[1])
        sup_dummy = controls.dummy_weight * F.cross_entropy(dummy.labeled, views.labels)
        self_dummy = controls.dummy_weight * self_dummy
        weight, penalty = weight + weight_dummy, penalty + controls.dummy_weight * penalty_dummy
    confidence, pseudo_labels = real.weak.detach().softmax(1).max(1)
    return ClassifierLoss(sup_real, sup_dummy, self_real, self_dummy, pseudo_labels, confidence, weight, penalty)


def self_training(
    weak_MK: Tensor, strong_MK: Tensor, rows_M: Tensor, counted_M: Tensor, rule: FixMatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of one head to pseudo-labels, averaged over all M; their weights (M,); the rule's penalty."""
    probs = weak_MK.detach().softmax(1)
    weight = rule.weigh(probs, rows_M, counted_M)
    loss = (F.cross_entropy(strong_MK, probs.argmax(1), reduction="none") * weight).mean()
    return loss, weight, rule.penalty(strong_MK, weight)


def queue_risk(real_B: Tensor, queued_Q: Tensor, unlabeled_M: Tensor, batch: Batch) -> Tensor:
    """det_sup: CE(D, real) = -log(1 - s) = softplus(logit), CE(D, synthetic) = softplus(-logit)."""
    return F.softplus(real_B).mean() + F.softplus(-queued_Q).mean()


def consistency(logits_M: Tensor, prob_synthetic_M: Tensor, threshold: float) -> Tensor:
    """det_cons from the logits of one view and the probabilities s(u) of another."""
    confident = torch.maximum(prob_synthetic_M, 1 - prob_synthetic_M) >= threshold
    target = (prob_synthetic_M >= 0.5).float()
    return (F.binary_cross_entropy_with_logits(logits_M, target, reduction="none") * confident).mean()


class RSMatch:
    """Classifier, detector, queue and thresholds, and the step that trains them. A plain loop calls `step`.

    A classifier of one output says that there are no classes. Then the detector alone is trained, from its first step:
    all images are of one pseudo-class, the queue has one sub-queue, and the classifier stays as it is.
    """

    has_detector = True

    def __init__(
        self,
        recipe: Recipe,
        controls: Controls,
        classifier: TwoHeaded,
        detector: Detector | Fitted[Panel],
        autocast: AbstractContextManager[object],
        *,
        num_images: int,
        marked: Marked | None = None,
        risk: Risk = queue_risk,
    ) -> None:
        self.recipe, self.controls, self.marked, self.risk, self._autocast = recipe, controls, marked, risk, autocast
        device, num_classes = next(classifier.parameters()).device, classifier.real.out_features
        self.has_classes = num_classes > 1
        average = averaged(classifier)  # copied before `norms` changes the network
        self.resample = False  # the views of a detector that is trained
        self.detector = detector if isinstance(detector, Fitted) else self._learner(detector)
        (norms.split if controls.split_norms else norms.synchronize)(classifier)
        sgd_ = sgd(
            classifier,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            backbone_rate=recipe.backbone_rate,
        )
        self.classifier = Learner(classifier, average, sgd_)
        self.rules = tuple(rules.build(recipe, num_classes, num_images).to(device) for _head in ("real", "dummy"))
        self.examples = Examples(recipe, controls, num_classes, marked, device)
        self.thresholds = Thresholds(follows=controls.share_thresholds).to(device)
        self.residual_score = ResidualScore().to(device)

    def _learner(self, detector: Detector) -> Learner[Detector]:
        resampled, average = self.controls.resampled_views, averaged(detector)
        self.resample = detector.equalizes if resampled is None else resampled
        norms.synchronize(detector)
        return Learner(detector, average, adamw(detector, weight_decay=0.01))

    @property
    def bootstrap_step(self) -> int | None:
        """`bootstrap` is called just before this step, once pseudo-labels are reliable enough; None: never."""
        return self._warmup_steps if self.controls.bootstraps else None

    @property
    def detector_start(self) -> int:
        """First step of the detector."""
        return self.bootstrap_step or 0

    @property
    def routing_start(self) -> int:
        """First step in which images may go to the dummy head."""
        return max(self._warmup_steps, self.detector_start + DETECTOR_SETTLES)

    @property
    def _warmup_steps(self) -> int:
        return self.recipe.warmup_steps if self.has_classes else 0  # without classes there is nothing to warm up

    def step(self, number: int, batch: Batch, fetch_tiles: FetchTiles, rng: Rng) -> dict[str, Tensor]:
        """Train on one batch. Returns figures as tensors; nothing waits for the device."""
        if self.has_classes:
            return self._train_both(number, batch, fetch_tiles, rng)
        evidence, g = self.route(number, batch, rng)
        assert evidence is not None, "without classes and without a detector there is nothing to train"
        one_class = torch.zeros_like(batch.rows)
        figures = self._train_detector(number, batch, evidence, one_class, fetch_tiles, rng)
        return {"dummy_share": g.float().mean()} | figures

    def _train_both(self, number: int, batch: Batch, fetch_tiles: FetchTiles, rng: Rng) -> dict[str, Tensor]:
        """Train the classifier and, from its first step on, the detector."""
        view = self.classifier.network.augmentation
        x, y, u = view.weak(batch.labeled, rng), batch.labels, batch.unlabeled
        evidence, g = self.route(number, batch, rng)
        views = Views(x, y, view.weak(u, rng), view.strong(u, rng), batch.rows)
        with self._autocast:
            losses = classifier_loss(self.classifier.network, views, g, self.rules, self.controls)
        self.classifier.descend(
            losses.total,
            rate=cosine(number, self.recipe.num_steps, self.recipe.learning_rate),
            decay=decay_at(number, self.recipe.ema_decay),
        )
        figures = losses.figures(self.classifier.network.real.out_features) | {
            "sup_dummy": losses.sup_dummy.detach(),
            "self_dummy": losses.self_dummy.detach(),
            "dummy_share": g.float().mean(),
        }
        if evidence is not None and number >= self.detector_start:
            figures |= self._train_detector(number, batch, evidence, losses.pseudo_labels, fetch_tiles, rng)
        return figures

    @torch.no_grad()
    def pseudo_labels(self, images_BCHW: Tensor) -> Tensor:
        """Pseudo-labels (B,) int64 by the averaged real head; without classes all images are of one."""
        if not self.has_classes:
            return torch.zeros(len(images_BCHW), dtype=torch.int64, device=images_BCHW.device)
        labels: Tensor = self.classifier.average(images_BCHW).real.argmax(1)
        return labels

    @torch.no_grad()
    def route(self, number: int, batch: Batch, rng: Rng) -> tuple[Tensor | None, Tensor]:
        """Logit (M,) of s(u), 0 at the middle threshold before it moves, and g(u), (M,) bool.

        The evidence is the detector's logit plus the residual score, scaled alike. The two make different errors, so
        their sum ranks better than either; and the score sees sharpness, which is hidden from the detector. Controls
        that train no detector have no evidence: None.
        """
        logits = self.detector.average(augment.weak(batch.unlabeled_tiles, rng))
        evidence = logits
        if self.controls.bootstraps and self.controls.residual_evidence:
            score = self.residual_score(batch.unlabeled_tiles)
            evidence = logits + ranks.gather(logits).std(correction=0) * score
        centered = evidence - self.thresholds.middle
        if self.marked:
            centered = self.marked.override(batch.rows, centered, -torch.inf, torch.inf)
        if number >= self.detector_start:
            self.thresholds.follow(ranks.gather(logits), ranks.gather(evidence))
        g = (centered >= self.thresholds.route - self.thresholds.middle) & (number >= self.routing_start)
        return centered, self.marked.route(batch.rows, g) if self.marked else g

    def _train_detector(
        self, number: int, batch: Batch, evidence: Tensor, pseudo_labels: Tensor, fetch_tiles: FetchTiles, rng: Rng
    ) -> dict[str, Tensor]:
        """Push the most synthetic images into the queue, then train the detector on examples and unlabeled tiles."""
        detector = self.detector
        assert isinstance(detector, Learner), "a fitted detector is not trained"
        age = number - self.detector_start
        settled, s = age >= DETECTOR_SETTLES, evidence.sigmoid()
        if self.controls.has_queue and (settled or not self.controls.bootstraps):
            # In probabilities: up there several logits round to one.
            sure = s >= (self.thresholds.sure - self.thresholds.middle).sigmoid()
            # An untrained detector has a random sign: until it has settled, the queue is filled at random.
            score = s.masked_fill(~sure, -torch.inf) if settled else rng.uniform(len(s))
            self.examples.push(batch.rows, score, pseudo_labels, rng)
        real, queued = self.examples.fetch(batch.labeled_tiles, fetch_tiles, rng)
        v = [augment.detector(tiles, rng, resample=self.resample) for tiles in (*real, queued, batch.unlabeled_tiles)]
        sizes = [sum(map(len, real)), len(queued), len(batch.unlabeled_tiles)]
        real_B, queued_Q, unlabeled_M = detector.network(torch.cat(v)).split(sizes)
        sup = self.risk(real_B, queued_Q, unlabeled_M, batch)
        # Consistency with a teacher that has not settled would teach its random sign.
        cons = consistency(unlabeled_M, s, self.recipe.confidence_threshold) * float(settled)
        detector.descend(
            sup + cons, cosine(number, self.recipe.num_steps, DETECTOR_RATE), decay_at(age, DETECTOR_DECAY)
        )
        return {"detector_sup": sup.detach(), "detector_cons": cons.detach()} | self.examples.figures

    def bootstrap(
        self, rows_N: Tensor, features_N: Tensor, features_L: Tensor, pseudo_labels_N: Tensor, rng: Generator
    ) -> None:
        """Start queue, thresholds and residual score from the residual features of N pool and L labeled images."""
        queues_N, num_queues = self.examples.sub_queue(pseudo_labels_N), len(self.examples.queue.size)
        found = bootstrap.bootstrap(features_N, features_L, queues_N, num_queues, rng)
        self.residual_score.fit(found.linear, features_N)
        self.examples.fill(rows_N, found, queues_N)
        self.thresholds.fit(found.estimated_share, found.interval)
        # GPUs sum in any order, and all ranks must hold what one of them chooses.
        parts: tuple[nn.Module, ...] = (self.residual_score, self.examples.queue, self.thresholds)
        ranks.from_first_(buffer for part in parts for buffer in part.buffers())

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """State for a checkpoint, by name; `train.resume` adds `examples.confident_real`, whose length varies."""
        return {
            **self.classifier.parts("classifier"),
            **self.detector.parts("detector"),
            "queue": self.examples.queue,
            "thresholds": self.thresholds,
            "residual_score": self.residual_score,
            "rule_real": self.rules[0],
            "rule_dummy": self.rules[1],
        }
