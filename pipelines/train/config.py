"""What `curate train` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models import rsmatch, rules
from models.rsmatch import Recipe
from pipelines.images.views import Decoder
from pipelines.storage.locations import AnyFolder, LocalFolder


class TrainConfig(BaseModel):
    """Everything that decides what is trained. The defaults are the paper-scale recipe, for a GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labeled: Path
    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    validation: Path | None = None
    truth: Path | None = None  # reported against; trained on by oracles alone (routing, detector_examples)
    method: Literal["rsmatch", "fixmatch", "openmatch", "iomatch", "supervised"] = "rsmatch"
    rule: rules.Name = "fixmatch"  # which pseudo-labels count
    routing: rsmatch.Routing = "detector"  # who decides what goes to the dummy head; the others are controls
    dummy_weight: float = Field(default=1.0, ge=0)  # of the dummy head's losses; 0 discards what is routed to it
    dummy_labels: rsmatch.Head = "dummy"  # which head makes the dummy head's pseudo-labels
    detector_examples: rsmatch.Examples = "queue"  # what the detector takes for synthetic
    share_real: float | None = Field(default=None, gt=0, lt=1)  # of the pool; for detector_examples = "nnpu"
    detector_init: Literal["features", "random"] = "features"
    equalize_spectrum: bool = True  # False: the detector may see how an image was scaled, and no view is rescaled
    backbone: str = "wrn-28-2"
    weights: Path | None = None  # safetensors of the backbone to start from
    pretrained: bool = False  # fetch a timm backbone's weights from its hub
    start: Path | None = None  # run whose classifier, both heads of it, is trained on
    image_size: int = Field(default=32, ge=8)
    detector_size: int | None = Field(default=None, ge=16)  # None: the image size, at most 96
    num_steps: int = Field(default=2**20, ge=1)
    batch_size: int = Field(default=64, ge=2)  # labeled images a step
    unlabeled_ratio: int = Field(default=7, ge=1)  # mu: unlabeled images for each labeled one
    warmup: float = Field(default=0.05, ge=0, lt=1)
    threshold: float = Field(default=0.95, gt=0, le=1)
    learning_rate: float = Field(default=0.03, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    norm_momentum: float = Field(default=0.001, gt=0, le=1)
    split_norms: bool = True  # batch statistics apart for what goes to the dummy head (models.norms)
    synthetic_targets: rsmatch.Statistics = "batch"  # "running" where nearly all synthetic images are of one class
    weak_gradient: bool = True
    held_out: float = Field(default=0.2, ge=0, lt=1)  # of the labeled images, kept from the detector to calibrate it
    queue_length: int = Field(default=256, ge=1, le=10**6)  # of each class
    queue_classes: int | None = Field(default=None, ge=1)  # None: a fifth of the classes, 1 to 10
    queue_per_class: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    memory: Literal["auto", "memory", "stream"] = "auto"  # where the pool's pixels come from
    compile: Literal["off", "on", "cuda-graphs"] = "off"  # torch.compile; minutes before the first step on a CPU
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    evaluate_every: int = Field(default=1000, ge=1)
    resume: bool = True

    @property
    def decoder(self) -> Decoder:
        """Sizes of the views."""
        return Decoder(self.image_size, self.detector_size or min(self.image_size, 96))

    def recipe(self, num_classes: int) -> Recipe:
        """The part that the method takes."""
        shared = {name: getattr(self, name) for name in Recipe.__dataclass_fields__ if name != "queue_classes"}
        return Recipe(**shared, queue_classes=self.queue_classes or max(1, min(10, round(num_classes / 5))))

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with; how often to log or where to run does not matter to the numbers."""
        free = {"resume", "checkpoint_every", "run", "device", "memory", "validation", "truth", "evaluate_every"}
        return self.model_dump(mode="json", exclude=free)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What training came to."""

    num_steps: int
    num_unlabeled: int
    num_labeled: int
    labeled_in_pool: int  # taken out of the unlabeled part
    marked: dict[str, int]  # images by what a person's marks made of them: labeled, real, synthetic
    classes: tuple[str, ...]
    seconds: float  # of this call
    share_synthetic: float | None  # of the pool, estimated; None without a detector that starts from features
    share_interval: tuple[float, float] | None  # 95 %
    waiting_share: float  # of the steps' time, spent waiting for images to be read and decoded
    resumed_at: int
    metrics: dict[str, Any]  # the last ones
    alarms: tuple[str, ...]
