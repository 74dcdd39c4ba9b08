"""Fixtures for all tests: the toy world, ingested and scored by the real stages. Tests copy what they change."""

import os
import warnings

# Before torch is imported, here and in the processes that tests start: the networks of the tests are small, and two
# threads that wait for each other beside busy neighbors are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from models.classifier import Classifier
from models.detector import Detector
from pipelines import ingest, score, toy
from pipelines.run import model

# Fixtures that take over a second to set up.
SLOW = {"world", "untrained", "leaking", "home", "ray", "tiny_models", "bucket"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with a slow fixture as `slow`; tests that are slow by themselves are marked in their file."""
    for item in items:
        if isinstance(item, pytest.Function) and SLOW & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class World:
    """Folders of a toy world: `crawl`, `seed`, `test`, `truth.parquet`, and the `pool` ingested from it."""

    root: Path

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def seed(self) -> Path:
        return self.root / "seed"

    @property
    def test(self) -> Path:
        return self.root / "test"

    @property
    def truth(self) -> Path:
        return self.root / "truth.parquet"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    toy.make(root, num_real=600, alpha=0.5, labels_per_class=8, num_test=50)
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    return World(root)


def save_untrained(run: Path, classes: Sequence[str] = toy.CLASSES, *, seed: int = 0) -> None:
    """Save a model with its initial weights. Its scores and embeddings are valid, and training would take minutes."""
    torch.manual_seed(seed)
    config = model.ModelConfig(
        classes=tuple(classes), method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=0,
        pool="pool",
    )  # fmt: skip
    model.save(run / "model", config, Classifier("small", len(classes)).eval(), Detector().eval())


@pytest.fixture(scope="session")
def untrained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the world's pool/, and the run/ of an untrained model that has scored it."""
    home = tmp_path_factory.mktemp("untrained")
    shutil.copytree(world.pool, home / "pool")
    save_untrained(home / "run")
    score.run(score.ScoreConfig(pool=home / "pool", run=home / "run", device="cpu"))
    return home


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, driven by Playwright."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def processes_of() -> Callable[[int], list[int]]:
    """Lists the processes of a session, which is what an orphan keeps of the parent that it was started by."""
    if not Path("/proc").exists():
        pytest.skip("looks for processes in /proc")

    def listed(session: int) -> list[int]:
        found = list[int]()
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
        return found

    return listed


@dataclass(frozen=True)
class Models:
    """Folders with a prompt model and an image model, small, with random weights, as `save_pretrained` leaves them."""

    prompts: Path  # T5
    images: Path  # Stable Diffusion; its images are 16x16


_WORDS = (
    "a photo of a red disc on the grass in the morning",
    "a small blue cross in front of an old wall",
    "stripes and squares in a quiet street at night",
    "the triangle stands by the sea under gray clouds",
)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    for name in ("accelerate", "diffusers", "transformers"):
        pytest.importorskip(name, reason="the extra `generate` is not installed")
    root = tmp_path_factory.mktemp("models")
    models = Models(root / "prompts", root / "images")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these libraries deprecate among themselves
        _save_prompt_model(models.prompts)
        _save_image_model(models.images, root / "vocabulary")
    return models


def _save_prompt_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    unigrams = Tokenizer(models.Unigram())
    unigrams.pre_tokenizer, unigrams.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    unigrams.train_from_iterator(
        _WORDS, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigrams, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


def _save_image_model(folder: Path, vocabulary: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    pairs.train_from_iterator(
        _WORDS,
        trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", special_tokens=special, show_progress=False),
    )
    vocabulary.mkdir()
    pairs.model.save(str(vocabulary))
    tokenizer = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        cross_attention_dim=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
