"""Plan a generation: which images each shard holds, with the prompt and the seed of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.generate.config import GenerateConfig
from pipelines.generate.prompts import Prompt, seed_of
from pipelines.pool.manifest import key_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One image to make."""

    key: str
    class_name: str
    label: int  # index of the class
    number: int  # within its class
    prompt: Prompt
    seed: int


def jobs_of(config: GenerateConfig, shard: int, found: Mapping[str, Sequence[Prompt]]) -> list[Job]:
    """List the images of a shard. Classes alternate, and so do the prompts of a class."""
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
