"""How a method trains: the user's recipe, and the controls of the benchmark. The defaults stand here and nowhere else.

This module imports neither torch nor files, so that a command line can list all settings at once.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MethodName = Literal["rsmatch", "fixmatch", "openmatch", "iomatch", "supervised"]
RuleName = Literal["fixmatch", "flexmatch", "freematch", "softmatch"]
Head = Literal["real", "dummy"]

# A revision is raised by each change after which equal settings train another network: results from before and after
# it are not compared.
CLASSIFIER_REVISION = 1
DETECTOR_REVISION = 2


class Recipe(BaseModel):
    """How to train. The defaults are FixMatch's for CIFAR-10 (arXiv 2001.07685), and ours where RSMatch differs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MethodName = Field(default="rsmatch", description="Training method.")
    rule: RuleName = Field(default="fixmatch", description="Rule that weighs the pseudo-labels.")
    num_steps: int = Field(default=2**20, ge=1, description="Training steps.")
    batch_size: int = Field(default=64, ge=2, description="Labeled images per step.")
    unlabeled_ratio: int = Field(default=7, ge=1, description="Unlabeled images per labeled image in a step (mu).")
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps that are plain FixMatch, before images are routed."
    )
    confidence_threshold: float = Field(
        default=0.95, gt=0, le=1, description="Confidence from which a pseudo-label counts (tau)."
    )
    learning_rate: float = Field(default=0.03, gt=0, description="Peak learning rate of the classifier (SGD).")
    backbone_rate: float = Field(
        default=0.1, ge=0, le=1, description="Learning rate of a pretrained backbone, as a share of learning_rate."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum.")
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay; biases and batch norms have none.")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="Decay of the averaged classifier, which predicts.")
    norm_momentum: float = Field(
        default=0.001, gt=0, le=1, description="Share of a new batch in the running statistics of the batch norms."
    )
    equalize_spectrum: bool = Field(
        default=True,
        description="Hide from the detector how sharp an image is; false where all images were scaled the same way.",
    )
    held_out: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of the labeled images kept from the detector, to calibrate it.",
    )
    calibration_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of the labeled images of each class kept from the classifier, to measure how often its "
        "labels are right; a frozen backbone's classifier is measured by all of them, and learns from all.",
    )
    self_training: Literal["auto", "always"] = Field(
        default="auto",
        description="On the features of a frozen backbone, whether to learn from pseudo-labels of the pool: auto does "
        "not where the labels alone make the classifier right more often, on labeled images that it has not seen.",
    )
    queue_length: int = Field(default=256, ge=1, le=10**6, description="Entries of the synthetic queue per class (L).")
    queue_classes: int | None = Field(
        default=None,
        ge=1,
        description="Classes whose queue grows in a step (P); unset: a fifth of them, 1 to 10.",
    )
    queue_per_class: int = Field(default=1, ge=1, description="Images pushed per such class (Q).")

    @property
    def warmup_steps(self) -> int:
        """Steps of plain FixMatch at the start of a training."""
        return round(self.warmup * self.num_steps)

    def pushed_classes(self, num_classes: int) -> int:
        """P for a task of `num_classes`."""
        return self.queue_classes or max(1, min(10, round(num_classes / 5)))


class Controls(BaseModel):
    """What RSMatch is compared with: other routes, other detector examples, and each of our additions switched off.

    Only the benchmark changes these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Who decides, and what teaches.
    routing: Literal["detector", "oracle", "random"] = Field(
        default="detector",
        description="Who routes images to the dummy head: the detector, the truth, or the truth shuffled in the batch.",
    )
    dummy_weight: float = Field(default=1.0, ge=0, description="Weight of the dummy head's losses; 0 discards.")
    dummy_labels: Head = Field(default="dummy", description="Head that makes the dummy head's pseudo-labels.")
    detector_examples: Literal["queue", "global-queue", "nnpu", "truth"] = Field(
        default="queue",
        description="Synthetic examples of the detector: the class-wise queue, one queue for all classes, none (nnPU), "
        "or the truth.",
    )
    share_real: float | None = Field(
        default=None, gt=0, lt=1, description="Share of the pool that is real, which nnPU has to be told."
    )
    weak_gradient: bool = Field(
        default=True,
        description="Forward weak and strong views together; false: apart and without gradient, a third cheaper.",
    )
    synthetic_targets: Literal["batch", "running"] = Field(
        default="batch", description="Batch norm statistics by which synthetic images get their pseudo-labels."
    )
    # Our additions to the paper; see `models.rsmatch`.
    detector_init: Literal["features", "random"] = Field(
        default="features", description="Bootstrap of the detector: residual features fill the queue, or nothing does."
    )
    residual_evidence: bool = Field(
        default=True, description="Add the residual score to the detector's logit in everything that training decides."
    )
    share_thresholds: bool = Field(
        default=True, description="Set the thresholds by the estimated synthetic share; false: all at a logit of 0."
    )
    confident_real: bool = Field(
        default=True,
        description="Show the detector the images that the bootstrap found most real.",
    )
    residual_planes: bool = Field(
        default=True, description="Show the detector what a 3x3 mean leaves of each color beside the colors."
    )
    residual_features: bool = Field(
        default=True, description="Add a linear score of the residual features to the detector's logit."
    )
    resampled_views: bool | None = Field(
        default=None, description="Resample the detector's views at random scales; unset: as equalize_spectrum."
    )
    split_norms: bool = Field(
        default=True, description="Keep the batch statistics of the two routes apart; false: shared, as in FixMatch."
    )
    average_over_real: bool = Field(
        default=True,
        description="Average self-training of the real head over the images routed to it; false: over all.",
    )

    @property
    def trains_detector(self) -> bool:
        """Whether RSMatch trains a detector: controls that route by the truth need none."""
        return self.routing == "detector"

    @property
    def has_queue(self) -> bool:
        """Whether the detector learns from a queue."""
        return self.detector_examples in ("queue", "global-queue")

    @property
    def bootstraps(self) -> bool:
        """Whether residual features fill the queue before the detector's first step."""
        return self.trains_detector and self.has_queue and self.detector_init == "features"

    @property
    def needs_truth(self) -> bool:
        """Whether the batches must say which images are synthetic: oracles and upper bounds alone do."""
        return not self.trains_detector or self.detector_examples == "truth"
