"""Generate the synthetic images of a benchmark: class names -> prompts by T5 -> images by a diffusion model.

In: names of classes; two models, each a folder or a name on the Hugging Face hub, as safetensors. Out, below
`config.out`:

    prompts.jsonl       a line per prompt: class, prompt, and what wrote it; written first
    00000.tar ...       WebDataset: KEY.png (or .jpg), KEY.cls (index into the sorted names), KEY.txt (the prompt),
                        KEY.json (class, prompt, models and revisions, seed, steps, guidance, ...)
    00000_stats.json    counts of the shard; written last, its done file
    run.json            configuration, revisions and classes; at the end also the counts

A second run keeps existing prompts and shards and resumes with the next shard. A prompts.jsonl that exists before the
first run is used as it is, without loading a prompt model; its lines need only "class" and "prompt".

Image `number` of a class starts from noise seeded by (seed, class, number), on any device. Every shard is divided into
batches starting from its first image, so an interrupted run gives the same bytes as an uninterrupted one. A different
--batch-size gives the same images up to rounding, because matrix products round differently for other shapes. Classes
alternate, so an incomplete folder is balanced.

The RS-SSL benchmark was made this way (arXiv 2405.16930; Stable Diffusion 1.4, GLIDE, SDXL-Lightning). Any
text-to-image pipeline of diffusers works; for a distilled one, set --steps and --guidance. SDXL-Lightning is published
as a bare UNet: put it into an SDXL pipeline with a trailing Euler scheduler once, `save_pretrained`, and name that
folder.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from pipelines.compute import devices
from pipelines.errors import BadInput, CorruptShard, why
from pipelines.generate import prompts, record
from pipelines.generate.config import GenerateConfig, Summary
from pipelines.generate.jobs import Job, jobs_of
from pipelines.generate.painter import Painter
from pipelines.generate.prompts import Prompt, Writer
from pipelines.images.encode import encode
from pipelines.pool.manifest import KEY_DIGITS, MAX_SHARDS
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locks
from pipelines.storage.atomic import publish, write_json
from pipelines.storage.shards import ShardWriter


def read_classes(given: str) -> tuple[str, ...]:
    """Read names of classes from a text file with one a line, or from a list with commas. BadInput if unreadable."""
    path = Path(given)
    if path.suffix != ".txt" and not path.is_file():
        return tuple(name.strip() for name in given.split(","))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = why(error) if isinstance(error, OSError) else "it is not text"
        raise BadInput(f"{given} cannot be read ({what}). Give a text file with one class a line.") from None
    return tuple(name for line in lines if (name := line.strip()))


def run(config: GenerateConfig, on_tick: OnTick = ignore) -> Summary:
    """Generate the images that are missing; see the module.

    Raises BadInput for a model that cannot be loaded and for an `out` that holds other files, Incompatible if it was
    begun with another configuration or model.
    """
    started = time.monotonic()
    total = len(config.classes) * config.per_class
    num_shards = -(-total // config.shard_size)
    if num_shards > MAX_SHARDS:
        raise BadInput(f"{total} images need more than {MAX_SHARDS} shards of {config.shard_size}. Raise shard_size.")
    with locks.held(config.out):
        record.refuse_others(config.out)
        begun = record.begun(config)
        found = prompts.take(config.out / "prompts.jsonl", config.classes, _writer(config), on_tick)
        todo = [shard for shard in range(num_shards) if not _is_done(config.out, shard)]
        if todo:
            painter = Painter.load(config, begun["image_model"]["revision"] if begun else None)
            ours = record.describe(config, painter)
            if begun is None:
                write_json(config.out / "run.json", ours)
            else:
                record.compare(config, begun, ours)
            for shard in todo:
                _write_shard(config, shard, found, painter, on_tick)
        summary = _summary(config, num_shards, num_shards - len(todo), found, started)
        written = json.loads((config.out / "run.json").read_bytes())
        counts = {"images": summary.images, "withheld": summary.withheld, "per_class": summary.per_class}
        write_json(config.out / "run.json", written | {"summary": counts})
    return summary


def _writer(config: GenerateConfig) -> Writer:
    return Writer(
        model=config.prompt_model,
        revision=config.prompt_revision,
        instruction=config.instruction,
        per_class=config.prompts_per_class,
        seed=config.seed,
        device=devices.choose(config.device),
    )


# Shards


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
            f"{config.batch_size} images at once do not fit into memory. Run the same command again with a smaller "
            "--batch-size: it resumes from here."
        ) from None
    except ValueError as error:  # a pipeline refuses a size this way, for example
        raise BadInput(f"{config.image_model}: {error}") from error
    for job, picture in zip(batch, pictures, strict=True):
        if picture and picture.getcolors(1):
            raise BadInput(
                f"{config.image_model}: image {job.number} of {job.class_name!r} has only one color, probably because "
                "numbers overflow. Try --dtype bfloat16 or float32."
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
            raise CorruptShard(f"{path} is damaged. Remove it and run the same command again.") from None
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
