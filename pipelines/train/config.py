"""Configuration and summary of `curate train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.recipe import CLASSIFIER_REVISION, DETECTOR_REVISION, Controls, Recipe
from pipelines import settings
from pipelines.errors import BadInput
from pipelines.storage.locations import AnyFolder, LocalFolder

if TYPE_CHECKING:
    from pipelines.images.views import Decoder
    from pipelines.run.labels import Labels
    from pipelines.run.quality import Quality


class NetworkConfig(BaseModel):
    """The classifier's backbone, and the sizes of what the networks see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(
        default="auto",
        description="Backbone: wrn-28-2, small, timm:NAME or auto. auto: wrn-28-2 for pools of up to 64 pixels, else "
        "the best pretrained one that the device and the hub allow.",
    )
    weights: Path | None = Field(
        default=None, description="Weights to start the backbone from: .safetensors, or .pth, .pt, .bin of PyTorch."
    )
    pretrained: bool | None = Field(
        default=None,
        description="Start a timm backbone from published weights: of an installed package, or of timm's hub; unset: "
        "where the pool's images have over 64 pixels.",
    )
    frozen: bool | None = Field(
        default=None,
        description="Train on features that a pretrained backbone gives once for each image, and keep it as it is; "
        "unset: with a panel.",
    )
    detector: Literal["auto", "network", "panel"] = Field(
        default="auto",
        description="What tells real from synthetic images: a network that is trained, or a panel of witnesses that "
        "read a pretrained backbone's features; auto: a panel above 64 pixels.",
    )
    tiles: int = Field(default=4, ge=1, le=64, description="Most tiles of an image that the panel sees, at each scale.")
    views: int = Field(
        default=2, ge=1, le=64, description="Weak views of an image for a frozen backbone, and as many strong ones."
    )
    init_from: Path | None = Field(default=None, description="Run whose trained classifier to start from.")
    image_size: int | None = Field(
        default=None,
        ge=8,
        description="Side of the images that the classifier sees, in pixels; unset: the backbone's own size, 32 for "
        "wrn-28-2 and small.",
    )
    detector_size: int | None = Field(
        default=None,
        ge=16,
        description="Side of the native tiles that the detector sees, in pixels; unset: image_size, at most 96.",
    )

    @property
    def starts_trained(self) -> bool:
        """Whether the backbone starts from weights that were trained before."""
        return bool(self.weights or self.pretrained or self.init_from)


class MachineConfig(BaseModel):
    """Where to train, and how often to log; nothing here changes what is trained beyond rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cuda", "cpu"] = settings.device()
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="Precision of the networks; auto: bf16 where the device is faster in it."
    )
    memory: Literal["auto", "memory", "stream"] = Field(
        default="auto", description="Where the pool's pixels come from: decoded once into memory, or from the shards."
    )
    compile: Literal["off", "on", "cuda-graphs"] = Field(
        default="off", description="torch.compile; it takes minutes before the first step on a CPU."
    )
    log_every: int = Field(default=50, ge=1, description="Steps between two lines of metrics.jsonl.")
    checkpoint_every: int = Field(default=500, ge=1, description="Steps between two checkpoints.")
    evaluate_every: int = Field(default=1000, ge=1, description="Steps between two evaluations.")


class TrainConfig(BaseModel):
    """Everything that decides what is trained. The defaults are the paper-scale recipe, for a GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labeled: Path = Field(
        description="Real images: a folder per class, a CSV or parquet file of path and label, or a parquet file of "
        "the images. Without classes the detector alone is trained."
    )
    pool: AnyFolder = settings.pool()
    run: LocalFolder = settings.run("Folder to write the model to.")
    validation: Path | None = Field(default=None, description="Labeled images that measure accuracy during training.")
    truth: Path | None = Field(default=None, description="Known truth to report against; only controls train on it.")
    known_synthetic: Path | None = Field(
        default=None,
        description="Folder of images that are known to be synthetic; a few dozen help, of many generators.",
    )
    ignore_declared: bool = Field(
        default=False, description="Learn nothing from what image files declare about their origin."
    )
    scores: tuple[str, ...] = settings.scores()
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of everything random.")
    resume: bool = Field(default=True, description="Resume from the checkpoint in the run, if there is one.")
    network: NetworkConfig = NetworkConfig()
    recipe: Recipe = Recipe()
    machine: MachineConfig = MachineConfig()
    controls: Controls = Controls()

    @property
    def decoder(self) -> "Decoder":
        """Sizes of the views; BadInput where they follow a backbone that there is not."""
        from models.backbones import inputs  # both import torch, which a configuration does not need
        from pipelines.images.views import Decoder

        network = self.network
        try:
            size = network.image_size or inputs(network.backbone).size
        except ValueError as error:
            raise BadInput(f"--backbone {network.backbone}: {error}. Use wrn-28-2, small or timm:NAME.") from None
        return Decoder(size, network.detector_size or min(size, 96))

    @property
    def has_detector(self) -> bool:
        """Whether a detector is trained."""
        return self.recipe.method == "rsmatch" and self.controls.trains_detector

    @property
    def needs_truth(self) -> bool:
        """Whether training reads the truth: oracles and upper bounds alone do."""
        return self.recipe.method == "rsmatch" and self.controls.needs_truth

    @property
    def revision(self) -> str:
        """Revision of what is trained: CLASSIFIER.DETECTOR, or the classifier's alone."""
        return f"{CLASSIFIER_REVISION}.{DETECTOR_REVISION}" if self.has_detector else str(CLASSIFIER_REVISION)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with, by key: the settings that change the numbers.

        Pool and labeled set are not among them, because they may be moved; see `pipelines.train.data.Data.identity`.
        """
        free_of_machine = {"checkpoint_every", "device", "memory", "evaluate_every"}
        free: dict[str, Any] = dict.fromkeys(("labeled", "pool", "resume", "run", "validation", "truth"), True)
        return self.model_dump(mode="json", exclude=free | {"machine": free_of_machine})


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What training reports."""

    num_steps: int
    num_unlabeled: int
    num_labeled: int
    labeled_in_pool: int  # labeled images that the pool holds too, taken out of the unlabeled part
    marked: dict[str, int]  # images that a person's marks made labeled, real or synthetic
    classes: tuple[str, ...]
    seconds: float  # of this call
    estimated_share: float | None  # of the pool that is synthetic; None without a bootstrapped detector
    estimated_interval: tuple[float, float] | None  # 95 % confidence
    quality: "Quality | None"  # of the detector, and the bounds of the share; None without a detector
    labels: "Labels | None"  # how often they are right; None without classes, and where too few are held out
    waiting_share: float  # of the steps' time, spent waiting for images to be read and decoded
    resumed_at: int
    metrics: dict[str, Any]  # the last ones
    alarms: tuple[str, ...]
