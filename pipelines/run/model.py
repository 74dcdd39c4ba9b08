"""The trained model in run/model/: what it holds, and how to write and load it.

config.json              classes, sizes, method: everything needed to use the weights
classifier.safetensors   EMA weights of backbone and both heads
detector.safetensors     EMA weights of the detector
frozen.safetensors       weights of the pretrained network whose features a panel reads, where it is the detector
calibration.safetensors  labeled images by classifiers that had not seen them (`pipelines.run.calibration`)
classifier.pt2           classifier and detector as programs, which load with torch alone (`pipelines.run.programs`)
detector.pt2
README.md                the model card (`pipelines.run.card`)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.backbones import Standardize, backbone, inputs, load_weights
from models.classifier import Classifier, TwoHeaded
from models.detector import Detector
from models.frozen import Frozen, Precision
from models.layout import WIDTH, layout
from models.panel import Panel
from models.probe import Probe
from pipelines.compute import devices
from pipelines.errors import BadInput, CorruptShard, Incompatible, MissingArtifact, first_line
from pipelines.images.views import Decoder
from pipelines.pool.features import FeatureReader
from pipelines.run import calibration, card, outside, programs, weights
from pipelines.run.calibration import Evidence
from pipelines.run.checkpoint import write_tensors
from pipelines.run.outside import NONE, WITNESS, Outside
from pipelines.run.quality import Quality
from pipelines.run.scores import model_digest
from pipelines.storage.atomic import make_folder, replacing, sync, write_json


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Contents of run/model/config.json."""

    classes: tuple[str, ...]  # empty without classes
    method: str
    backbone: str
    image_size: int
    detector_size: int
    num_steps: int
    pool: str
    has_detector: bool = True  # whether a detector was trained; baselines and oracles train none
    equalize_spectrum: bool = True  # this and the next two are the detector's inputs: see `models.detector`
    residual_planes: bool = True
    residual_features: bool = True
    estimated_share: float | None = None  # of the pool that is synthetic: a probability of 0.5 leaves it above
    estimated_interval: tuple[float, float] | None = None  # 95 % confidence
    unsure_from: float = 0.5  # prob_synthetic from which an image is not called real
    held_out: tuple[float, ...] = ()  # prob_synthetic of labeled real images that the detector has never seen
    # Where the backbone has learned nothing, neither from classes nor before, its features say less about what images
    # show than 8x8 pixels do (`models.layout`). The detector's features are no choice: they say how images were made.
    embedding: Literal["backbone", "layout"] = "backbone"
    # Of the classifier; `save` sets them. The first two standardize levels of 0..1; None: as the backbone's name says.
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    is_pretrained: bool = False  # whether the backbone started from pretrained weights
    frozen: bool = False  # whether the classifier is a probe on a frozen backbone (`models.probe`)
    witnesses: dict[str, int] | None = None  # of the panel that is the detector, with their numbers of features
    precision: Precision = "fp32"  # in which the panel's features were computed, and are everywhere
    num_tiles: int = 4  # of an image that the panel sees, at each scale
    num_views: int = 2  # that the probe learned from
    # Of the probabilities (`models.calibration`); `save` sets them. 1 and 0: they are the classifier's own.
    temperature: float = 1.0
    uniform: float = 0.0

    @property
    def programs(self) -> tuple[str, ...]:
        """File names of the exported programs; see `pipelines.run.programs`."""
        has = {
            programs.CLASSIFIER: bool(self.classes),
            programs.DETECTOR: self.has_detector and self.witnesses is None,
        }
        return tuple(name for name in has if has[name])

    def build(self) -> tuple[Classifier | Probe, Detector | Panel]:
        """Build the networks, with weights still to be loaded."""
        detector: Detector | Panel
        if self.witnesses is not None:
            detector = Panel(self.witnesses)
        else:
            detector = Detector(
                equalize=self.equalize_spectrum,
                residual_planes=self.residual_planes,
                residual_features=self.residual_features,
            )
        num_outputs = max(1, len(self.classes))
        if self.frozen:
            _, num_features = backbone(self.backbone, self.image_size)
            return Probe(num_features, num_outputs, self.num_views), detector
        classifier = Classifier(self.backbone, num_outputs, self.image_size)
        if self.mean is not None and self.std is not None:
            classifier.standardize = Standardize(tuple(self.mean), tuple(self.std))
        classifier.is_pretrained = self.is_pretrained
        return classifier, detector


@dataclass(frozen=True)
class Model:
    """Trained networks with their configuration; `digest` identifies the training."""

    config: ModelConfig
    classifier: Classifier | Probe
    detector: Detector | Panel
    digest: str
    frozen: Frozen | None = None  # the network that the panel reads
    outside: Outside = NONE  # scores from outside that are witnesses of the panel
    evidence: Evidence | None = None  # of how often its labels are right

    @property
    def decoder(self) -> Decoder | FeatureReader:
        """Turns image files into what the networks take."""
        return self.reader or self.pixels

    @property
    def pixels(self) -> Decoder:
        """Turns image files into pixels."""
        return Decoder(self.config.image_size, self.config.detector_size)

    @property
    def reader(self) -> FeatureReader | None:
        """Turns image files into the features that a panel takes; None where a network is the detector."""
        if self.frozen is None:
            return None
        num_views = self.config.num_views if self.config.frozen else 0  # as in training, whose features it finds
        return FeatureReader(self.frozen, self.config.num_tiles, num_views, gives_pixels=not self.config.frozen)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings (B, D), float32, of uint8 images for the classifier: nearby ones show similar things."""
        return layout(images_BCHW) if self.config.embedding == "layout" else self.classifier.embed(images_BCHW)

    def typicality(self, embeddings_BD: Tensor, images_BCHW: Tensor) -> Tensor | None:
        """How typical (B,) of the labeled images others are; None where nothing was measured.

        Untrained features of a frozen backbone are compared where there are some: no training has drawn the labeled
        images together there.
        """
        if self.evidence is None:
            return None
        return self.evidence.typicality(images_BCHW[:, 0].float() if self.config.frozen else embeddings_BD)

    @property
    def embedding_width(self) -> int:
        """D of the embeddings."""
        return WIDTH if self.config.embedding == "layout" else self.classifier.num_features


def save(
    folder: Path,
    config: ModelConfig,
    classifier: TwoHeaded,
    detector: Detector | Panel,
    frozen: Frozen | None = None,
    *,
    evidence: Evidence | None = None,
    measured: Quality | None = None,
) -> None:
    """Write run/model/; config.json comes last and says that the rest is complete and of one training.

    The card tells what is known of labels (`evidence`) and detector (`measured`).
    """
    owner = classifier if isinstance(classifier, Classifier) else frozen
    assert owner is not None, "a probe goes with the frozen network that it reads"
    config = replace(
        config,
        mean=tuple(round(value, 6) for value in owner.standardize.mean.tolist()),
        std=tuple(round(value, 6) for value in owner.standardize.std.tolist()),
        is_pretrained=classifier.is_pretrained,
        temperature=evidence.calibration.temperature if evidence is not None else 1.0,
        uniform=evidence.calibration.uniform if evidence is not None else 0.0,
    )
    make_folder(folder)
    (folder / "config.json").unlink(missing_ok=True)
    sync(folder)
    parts = {"classifier": classifier.state_dict(), "detector": detector.state_dict()}
    if frozen is not None:
        parts["frozen"] = frozen.network.state_dict()
    for name, state in parts.items():
        tensors = {key: value.cpu().contiguous() for key, value in state.items()}
        write_tensors(folder / f"{name}.safetensors", tensors)
    calibration.save(folder, evidence)
    modules: dict[str, tuple[nn.Module, int]] = {
        programs.CLASSIFIER: (programs.RealHead(classifier, frozen), config.image_size),
        programs.DETECTOR: (programs.ProbSynthetic(detector), config.detector_size),
    }
    programs.save(folder, {name: modules[name] for name in config.programs})
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(card.text(config, evidence, measured), encoding="utf-8")
    write_json(folder / "config.json", asdict(config))


def list_classes(path: Path, classes: Sequence[str]) -> None:
    """Write the class names, one a line, by number from 0; without classes there is no such file."""
    if not classes:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def load(run: Path, device: torch.device) -> Model:
    """Load run/model/; MissingArtifact where training has not finished."""
    folder = run / "model"
    if not (folder / "config.json").is_file():
        raise MissingArtifact(
            f"{run} holds no trained model. Run `curate train --labeled SEED --run {quote(str(run))}` first."
        )
    try:
        values = json.loads((folder / "config.json").read_bytes())
        lists = {name: tuple(value) for name, value in dict(values).items() if isinstance(value, list)}
        config = ModelConfig(**{**values, **lists})
        classifier, detector = config.build()
        networks: dict[str, nn.Module] = {"classifier": classifier, "detector": detector}
        for name, network in networks.items():
            network.load_state_dict(load_file(folder / f"{name}.safetensors"))
            network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        frozen, columns = None, NONE
        if config.witnesses is not None:
            named = [name.removeprefix(WITNESS) for name in config.witnesses if name.startswith(WITNESS)]
            columns = outside.load(run).only(named)
            tensors = load_file(folder / "frozen.safetensors")
            frozen = Frozen(config.backbone, tensors, config.image_size, devices.autocast(config.precision, device)).to(
                device
            )
        digest = model_digest(run)
        assert digest is not None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise CorruptShard(
            f"{folder} cannot be loaded ({first_line(error)}). Train again with `--run {run}`."
        ) from None
    return Model(config, classifier, detector, digest, frozen, columns, calibration.load(run))


def init_from(classifier: Classifier | Probe, backbone: str, classes: tuple[str, ...], run: Path) -> None:
    """Give backbone and heads the weights of a trained run; an untrained dummy head becomes a copy of the real one.

    Raises MissingArtifact where training has not finished, Incompatible where backbone or classes differ.
    """
    trained = load(run, torch.device("cpu"))
    if (trained.config.backbone, trained.config.classes) != (backbone, classes):
        names = trained.config.classes
        of = f"{len(names)} classes ({', '.join(names)})" if names else "no classes"
        raise Incompatible(
            f"{run}: the classifier is {trained.config.backbone} with {of}. "
            "--init-from needs a run with the same --backbone and classes."
        )
    if trained.config.embedding != "backbone":
        raise Incompatible(
            f"{run}: its backbone is untrained, so there is nothing to start from. Leave --init-from out."
        )
    if isinstance(classifier, Probe) or isinstance(trained.classifier, Probe):
        if not (isinstance(classifier, Probe) and isinstance(trained.classifier, Probe)):
            raise Incompatible(f"{run}: only one of both has a frozen backbone. Use the same --frozen or --no-frozen.")
        classifier.load_state_dict(trained.classifier.state_dict())
        return
    try:
        load_weights(classifier.backbone, trained.classifier.backbone.state_dict())
    except ValueError as error:
        raise Incompatible(
            f"{run}: its backbone, trained at {trained.config.image_size} px, does not fit this one ({error}). Use the "
            "same --image-size."
        ) from None
    classifier.real.load_state_dict(trained.classifier.real.state_dict())
    classifier.dummy.load_state_dict(trained.classifier.dummy.state_dict())
    if trained.config.method != "rsmatch":
        classifier.dummy.load_state_dict(trained.classifier.real.state_dict())
    classifier.is_pretrained = trained.config.is_pretrained


def init_backbone(classifier: Classifier, name: str, file: Path | None) -> None:
    """Give the backbone pretrained weights: from a file, or, without one, from where `weights.pretrained` finds them.

    Raises BadInput if the file does not fit, the backbone has no weights, or no hub can be reached.
    """
    tensors = weights.pretrained(name, file)
    try:
        load_weights(classifier.backbone, tensors)
    except ValueError as error:
        where = f"--weights {file}" if file is not None else "--pretrained"
        published = f" Published ones fit --image-size {inputs(name).size}." if name.startswith("timm:") else ""
        raise BadInput(f"{where} does not fit {name}: it {error}. Are these weights of {name}?{published}") from None
    classifier.is_pretrained = True
