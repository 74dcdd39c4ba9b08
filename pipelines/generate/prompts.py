"""Sample prompts for each class from a text-to-text model, and keep them in prompts.jsonl.

A line is {"class": ..., "prompt": ...}, with the text as written, the instruction and the seed if the model wrote it.
An existing file is used as it is, whether an earlier run or the user wrote it, and no model is loaded.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import BadInput, Incompatible
from pipelines.generate import hub
from pipelines.progress import OnTick, Tick
from pipelines.storage.atomic import replacing

_ROUNDS = 4  # of sampling; after that a class has fewer prompts than asked for
_MAX_NEW_TOKENS = 48  # CLIP reads 77 tokens
_TOP_P = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt. `origin` says what wrote it; it is empty for a line in the user's own prompts.jsonl."""

    text: str
    origin: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """The prompt model: a folder, or a name and revision on the hub; with its instruction."""

    model: str
    revision: str | None
    instruction: str  # {class} is "an airplane"
    per_class: int
    seed: int
    device: torch.device

    @property
    def origin(self) -> dict[str, Any]:
        """The settings that must not change between runs that share a prompts.jsonl."""
        return {"prompt_model": self.model, "prompt_seed": self.seed, "instruction": self.instruction}


def take(path: Path, classes: Sequence[str], writer: Writer, on_tick: OnTick) -> dict[str, list[Prompt]]:
    """Read the prompts of each class, at least one, from the file at `path`, which is written first if it is missing.

    Raises BadInput for a malformed line and for a class without prompts, Incompatible if another model, seed or
    instruction wrote them.
    """
    if not path.exists():
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for values in _write(path, classes, writer, on_tick):
                file.write(json.dumps(values, ensure_ascii=False) + "\n")
    prompts: dict[str, list[Prompt]] = {name: [] for name in classes}
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8 text. Save it as UTF-8.") from None
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            name, text = values.pop("class"), values.pop("prompt")
            assert isinstance(name, str) and isinstance(text, str) and text.strip()
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise BadInput(f'{path}: line {number} is not {{"class": ..., "prompt": ...}}. Fix or remove it.') from None
        for setting, value in writer.origin.items():
            if setting in values and values[setting] != value:
                raise Incompatible(
                    f"{path} was written with {setting} = {values[setting]!r}, not {value!r}. Use that again, remove "
                    "the file, or name another folder with --out."
                )
        if name in prompts:
            prompts[name].append(Prompt(text=text, origin=values))
    if without := [name for name, found in prompts.items() if not found]:
        raise BadInput(f"{path} has no prompt for the class {without[0]!r}. Add one, or remove the file.")
    return prompts


@torch.no_grad()
def _write(path: Path, classes: Sequence[str], writer: Writer, on_tick: OnTick) -> Iterator[dict[str, Any]]:
    """Sample prompts from the model, class by class, each class with its own seed. BadInput if a class gets none."""
    with hub.loading(writer.model, "a text-to-text model"):
        from huggingface_hub import snapshot_download
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = Path(writer.model)
        if not folder.is_dir():
            wanted = list(hub.FILES)
            folder = Path(snapshot_download(writer.model, revision=writer.revision, allow_patterns=wanted))
        hub.refuse_code(folder)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, **local).to(writer.device).eval()
    origin = {**writer.origin, "prompt_revision": hub.revision_of(folder, writer.model)}
    for done, name in enumerate(classes):
        on_tick(Tick(done=done, total=len(classes), unit="classes"))
        instruction = writer.instruction.replace("{class}", with_article(name))
        inputs = tokenizer(instruction, return_tensors="pt").to(writer.device)
        found: dict[str, str] = {}  # prompt -> what the model wrote
        with torch.random.fork_rng([writer.device] if writer.device.type == "cuda" else []):
            torch.manual_seed(seed_of(writer.seed, name))
            for _ in range(_ROUNDS):
                tokens = model.generate(
                    inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=True, top_p=_TOP_P,
                    top_k=0, temperature=1.0, max_new_tokens=_MAX_NEW_TOKENS, num_return_sequences=writer.per_class,
                )  # fmt: skip
                for written in tokenizer.batch_decode(tokens, skip_special_tokens=True):
                    if prompt := prompt_of(name, written):
                        found.setdefault(prompt, written)
                if len(found) >= writer.per_class:
                    break
        if not found:
            raise BadInput(
                f"{writer.model} wrote nothing for the class {name!r}. Use another --prompt-model, or write {path} "
                'yourself, with lines {"class": ..., "prompt": ...}.'
            )
        for prompt, written in list(found.items())[: writer.per_class]:
            yield {"class": name, "prompt": prompt, "written": written, **origin}


def prompt_of(name: str, written: str) -> str:
    """Make a prompt for a class from the text that the model wrote; empty if the text is.

    The prompt always names the class: if the text does not, "a photo of an airplane, " is put before it.
    """
    text = " ".join(written.split())
    words = name.replace("_", " ")
    if not text or re.search(rf"\b{re.escape(words)}(s|es)?\b", text, re.IGNORECASE):
        return text
    return f"a photo of {with_article(name)}, {text}"


def with_article(name: str) -> str:
    """Put a class into a phrase: "an airplane", and "a maple tree" for maple_tree."""
    words = name.replace("_", " ")
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def seed_of(*parts: object) -> int:
    """Derive a seed of 63 bits from the text of `parts`."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
