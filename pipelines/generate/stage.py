"""Generate the synthetic half of a benchmark: class names -> prompts by T5 -> images by a diffusion model.

in      names of classes; two models, each a folder or a name on the Hugging Face hub, as safetensors
out     out/prompts.jsonl       a line per prompt: class, prompt, and what wrote it; written first
        out/00000.tar ...       WebDataset: KEY.png (or .jpg), KEY.cls (index into the sorted names), KEY.txt (the
                                prompt), KEY.json (class, prompt, models and revisions, seed, steps, guidance, ...)
        out/00000_stats.json    counts of the shard; written last: the mark that it is done
        out/run.json            configuration, revisions and classes; at the end also the counts
again   prompts and shards that are there are kept, and it goes on with the next shard

A prompts.jsonl that is there before the first run is taken as it is, and no prompt model is loaded; its lines need no
more than "class" and "prompt".

Image `number` of a class starts from noise seeded by (seed, class, number), whatever the device. Shards are cut into
batches from their first image on, so that a run that was interrupted gives the bytes of one that was not. With another
--batch-size the images are the same up to rounding, for matrix products round by their shapes. Classes take turns, so
that whatever is done so far is balanced.

This is how the RS-SSL benchmark came about (arXiv 2405.16930; Stable Diffusion 1.4, GLIDE, SDXL-Lightning). Any
text-to-image pipeline of diffusers serves, a distilled one by --steps and --guidance. SDXL-Lightning is published as a
bare UNet: put it into an SDXL pipeline with a trailing Euler scheduler once, `save_pretrained`, and name that folder.
"""

import hashlib
import inspect
import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines.compute import devices
from pipelines.errors import BadInput, CorruptShard, Incompatible
from pipelines.generate import hub, prompts
from pipelines.generate.config import GenerateConfig, Summary
from pipelines.generate.prompts import Prompt, Writer, seed_of
from pipelines.images.encode import encode
from pipelines.pool.manifest import KEY_DIGITS, MAX_SHARDS, key_of
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locks
from pipelines.storage.atomic import publish, write_json
from pipelines.storage.shards import ShardWriter

_OURS = re.compile(r"\d{5}\.tar|\d{5}_stats\.json|prompts\.jsonl|run\.json|\..+\.tmp")
_FREE = {"out", "device", "batch_size"}  # what may change between the runs that make one folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One image to make."""

    key: str
    class_name: str
    label: int
    number: int  # within its class
    prompt: Prompt
    seed: int


def read_classes(given: str) -> tuple[str, ...]:
    """Names of classes from a text file with one a line, or from a list with commas."""
    path = Path(given)
    if path.suffix != ".txt" and not path.is_file():
        return tuple(name.strip() for name in given.split(","))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"{given}: cannot be read ({why}); give a text file with a class a line.") from None
    return tuple(name for line in lines if (name := line.strip()))


def run(config: GenerateConfig, on_tick: OnTick = ignore) -> Summary:
    """Generate what is not there yet; see the module.

    Raises BadInput for a model that cannot be loaded and for an `out` in other use, Incompatible where the folder was
    begun with another configuration or model.
    """
    started = time.monotonic()
    total = len(config.classes) * config.per_class
    num_shards = -(-total // config.shard_size)
    if num_shards > MAX_SHARDS:
        raise BadInput(f"{total} images are more than {MAX_SHARDS} shards of {config.shard_size}; raise shard_size.")
    with locks.held(config.out):
        _refuse_strangers(config.out)
        begun = _begun(config)
        found = prompts.take(config.out / "prompts.jsonl", config.classes, _writer(config), on_tick)
        todo = [shard for shard in range(num_shards) if not _is_done(config.out, shard)]
        if todo:
            painter = Painter.load(config, begun["image_model"]["revision"] if begun else None)
            record = _record(config, painter)
            if begun is None:
                write_json(config.out / "run.json", record)
            else:
                _compare(config, begun, record)
            for shard in todo:
                _write_shard(config, shard, found, painter, on_tick)
        summary = _summary(config, num_shards, num_shards - len(todo), found, started)
        record = json.loads((config.out / "run.json").read_bytes())
        counts = {"images": summary.images, "withheld": summary.withheld, "per_class": summary.per_class}
        write_json(config.out / "run.json", record | {"summary": counts})
    return summary


# The folder


def _refuse_strangers(out: Path) -> None:
    if strange := [path.name for path in out.iterdir() if not _OURS.fullmatch(path.name)]:
        raise BadInput(f"{out}: holds {min(strange)}, which no generation wrote; name another folder with --out.")


def _begun(config: GenerateConfig) -> dict[str, Any] | None:
    """The run.json of the run that this one goes on with; None where it is the first."""
    path = config.out / "run.json"
    try:
        begun = json.loads(path.read_bytes())
        settings = begun["config"]
        assert begun["stage"] == "generate"
    except FileNotFoundError:
        if tar := min(config.out.glob("*.tar"), default=None):
            raise BadInput(f"{tar}: is there without the run.json of a generation; name another folder.") from None
        return None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise BadInput(f"{path}: no generation wrote this; name another folder with --out.") from None
    for name, value in _settings(config).items():
        if value != settings.get(name):
            raise Incompatible(
                f"{config.out}: was begun with {name} = {settings.get(name)!r}, not {value!r}; repeat that, "
                "or name another folder with --out."
            )
    assert isinstance(begun, dict)
    return begun


def _settings(config: GenerateConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_FREE)


def _writer(config: GenerateConfig) -> Writer:
    return Writer(
        model=config.prompt_model,
        revision=config.prompt_revision,
        instruction=config.instruction,
        per_class=config.prompts_per_class,
        seed=config.seed,
        device=devices.choose(config.device),
    )


def _record(config: GenerateConfig, painter: "Painter") -> dict[str, Any]:
    return {
        "stage": "generate",
        "config": _settings(config),
        "image_model": {"name": config.image_model, "revision": painter.revision, **painter.settings},
        "prompts": hashlib.sha256((config.out / "prompts.jsonl").read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in ("diffusers", "torch", "transformers")},
        "classes": config.classes,
    }


def _compare(config: GenerateConfig, begun: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    for name, what in (("image_model", "another image model or precision"), ("prompts", "another prompts.jsonl")):
        if begun[name] != record[name]:
            raise Incompatible(
                f"{config.out}: was begun with {what} ({begun[name]}, now {record[name]}); restore it, "
                "or name another folder with --out."
            )


def _tar_path(out: Path, shard: int) -> Path:
    return out / f"{shard:0{KEY_DIGITS}d}.tar"


def _stats_path(out: Path, shard: int) -> Path:
    return out / f"{shard:0{KEY_DIGITS}d}_stats.json"


def _is_done(out: Path, shard: int) -> bool:
    return _stats_path(out, shard).exists() and _tar_path(out, shard).exists()


def _summary(
    config: GenerateConfig, num_shards: int, done_before: int, found: Mapping[str, Sequence[Prompt]], started: float
) -> Summary:
    per_class, withheld = Counter[str](), 0
    for shard in range(num_shards):
        path = _stats_path(config.out, shard)
        try:
            stats = json.loads(path.read_bytes())
            per_class.update(stats["per_class"])
            withheld += stats["count"] - stats["successes"]
        except (ValueError, KeyError, TypeError):
            raise CorruptShard(f"{path}: is not what was written; remove it and run the same command again.") from None
    few = [
        f"{name} ({len(of_class)})"
        for name, of_class in found.items()
        if of_class[0].origin and len(of_class) < config.prompts_per_class
    ]
    notes = list[str]()
    if few:
        notes.append(f"Fewer than {config.prompts_per_class} different prompts: {', '.join(few)}.")
    if withheld:
        notes.append(f"{withheld} images were withheld by the safety checker of {config.image_model}.")
    return Summary(
        out=str(config.out),
        images=per_class.total(),
        withheld=withheld,
        per_class={name: per_class[name] for name in config.classes},
        shards=num_shards,
        num_done_before=done_before,
        prompts=sum(map(len, found.values())),
        notes=tuple(notes),
        seconds=round(time.monotonic() - started, 1),
    )


# Images


class Painter:
    """A text-to-image pipeline, with what the images are to be like."""

    def __init__(self, pipeline: Any, revision: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self.revision = revision
        self.settings = settings  # for the record
        self._arguments = arguments

    @classmethod
    def load(cls, config: GenerateConfig, revision: str | None) -> "Painter":
        """Load the image model, at `revision` of the hub if the configuration names none; safetensors alone."""
        device = devices.choose(config.device)
        dtype = config.dtype if config.dtype != "auto" else "float16" if device.type == "cuda" else "float32"
        with hub.loading(config.image_model, "a text-to-image pipeline of diffusers"):
            import diffusers
            from transformers.utils import logging

            logging.disable_progress_bar()
            diffusers.utils.logging.disable_progress_bar()
            diffusers.utils.logging.set_verbosity_error()
            safe: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
            folder = Path(config.image_model)
            if not folder.is_dir():
                wanted = config.image_revision or revision
                folder = Path(diffusers.DiffusionPipeline.download(config.image_model, revision=wanted, **safe))
            hub.refuse_code(folder)
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(folder, local_files_only=True, **safe)
            pipeline.set_progress_bar_config(disable=True)
            pipeline.to(device, getattr(torch, dtype))
        known = inspect.signature(pipeline.__call__).parameters
        arguments = dict[str, Any]()
        for flag, name, value in (
            ("steps", "num_inference_steps", config.steps),
            ("guidance", "guidance_scale", config.guidance),
            ("size", "height", config.size),
            ("size", "width", config.size),
        ):
            if value is not None and name not in known:
                raise BadInput(f"--{flag}: {type(pipeline).__name__} of {config.image_model} knows no {name}.")
            if name in known and (value is not None or known[name].default is not None):
                arguments[name] = value if value is not None else known[name].default
        settings = {
            "pipeline": type(pipeline).__name__,
            "steps": arguments.get("num_inference_steps"),
            "guidance": arguments.get("guidance_scale"),
            "dtype": dtype,
        }
        return cls(pipeline, hub.revision_of(folder, config.image_model), settings, arguments)

    def paint(self, jobs: Sequence[Job]) -> list[Image.Image | None]:
        """Make a picture for each job; None where the pipeline's own safety checker withheld it."""
        # On the CPU, so that every device starts from the same noise.
        generators = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self._pipeline(prompt=[job.prompt.text for job in jobs], generator=generators, **self._arguments)
        withheld = getattr(result, "nsfw_content_detected", None) or [False] * len(jobs)
        return [None if flag else image.convert("RGB") for image, flag in zip(result.images, withheld, strict=True)]


def jobs_of(config: GenerateConfig, shard: int, found: Mapping[str, Sequence[Prompt]]) -> list[Job]:
    """The images of a shard: classes take turns, and so do the prompts of a class."""
    first = shard * config.shard_size
    stop = min(first + config.shard_size, len(config.classes) * config.per_class)
    jobs = []
    for i in range(first, stop):
        number, label = divmod(i, len(config.classes))
        name = config.classes[label]
        jobs.append(
            Job(
                key=key_of(shard, i - first),
                class_name=name,
                label=label,
                number=number,
                prompt=found[name][number % len(found[name])],
                seed=seed_of(config.seed, name, number),
            )
        )
    return jobs


def _write_shard(
    config: GenerateConfig, shard: int, found: Mapping[str, Sequence[Prompt]], painter: Painter, on_tick: OnTick
) -> None:
    jobs, per_class = jobs_of(config, shard, found), Counter[str]()
    path = _tar_path(config.out, shard)
    temporary = path.with_name(f".{path.name}.tmp")
    before, total = shard * config.shard_size, len(config.classes) * config.per_class
    with ShardWriter(temporary) as tar:
        for start in range(0, len(jobs), config.batch_size):
            on_tick(Tick(done=before + start, total=total, unit="images"))
            batch = jobs[start : start + config.batch_size]
            for job, picture in zip(batch, _painted(config, painter, batch), strict=True):
                if picture is None:
                    continue
                for suffix, content in _members(config, painter, job, picture).items():
                    tar.add(f"{job.key}.{suffix}", content)
                per_class[job.class_name] += 1
    publish(temporary, path)
    counts = {
        "count": len(jobs),
        "successes": per_class.total(),
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "per_class": dict(sorted(per_class.items())),
    }
    write_json(_stats_path(config.out, shard), counts)
    on_tick(Tick(done=before + len(jobs), total=total, unit="images"))


def _painted(config: GenerateConfig, painter: Painter, batch: Sequence[Job]) -> list[Image.Image | None]:
    try:
        pictures = painter.paint(batch)
    except torch.OutOfMemoryError:
        raise BadInput(
            f"{config.batch_size} images at once do not fit into memory; run it again with a smaller --batch-size, "
            "which goes on from here."
        ) from None
    except ValueError as error:  # how pipelines refuse a size, say
        raise BadInput(f"{config.image_model}: {error}") from error
    for job, picture in zip(batch, pictures, strict=True):
        if picture and picture.getcolors(1):
            raise BadInput(
                f"{config.image_model}: image {job.number} of {job.class_name!r} has one color only, as where numbers "
                "overflow; try --dtype bfloat16 or float32."
            )
    return pictures


def _members(config: GenerateConfig, painter: Painter, job: Job, picture: Image.Image) -> dict[str, bytes]:
    description = {
        **job.prompt.origin,
        "class": job.class_name,
        "number": job.number,
        "prompt": job.prompt.text,
        "image_model": config.image_model,
        "image_revision": painter.revision,
        **painter.settings,
        "seed": config.seed,
        "image_seed": job.seed,
        "width": picture.width,
        "height": picture.height,
    }
    return {
        config.codec: encode(picture, config.codec),
        "cls": str(job.label).encode(),
        "json": json.dumps(description, ensure_ascii=False).encode("utf-8"),
        "txt": job.prompt.text.encode("utf-8"),
    }
