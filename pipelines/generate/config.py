"""What `curate generate` is asked for, and what it came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.generate import prompts


class GenerateConfig(BaseModel):
    """What to generate, and with which models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...] = Field(min_length=1)
    per_class: int = Field(ge=1)  # images
    out: Path
    prompt_model: str = "google/flan-t5-base"  # any sequence-to-sequence model
    prompt_revision: str | None = (
        None  # of the hub; None is the newest, and then the one that the folder was begun with
    )
    prompts_per_class: int = Field(default=20, ge=1)
    instruction: str = prompts.INSTRUCTION  # to the prompt model; {class} is "an airplane"
    image_model: str = "CompVis/stable-diffusion-v1-4"
    image_revision: str | None = None
    steps: int | None = Field(default=None, ge=1)  # this and the next: None is the pipeline's own
    guidance: float | None = Field(default=None, ge=0)
    size: int | None = Field(default=None, ge=8, multiple_of=8)  # side of the images, in pixels
    codec: Literal["png", "jpg"] = "png"
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=4, ge=1)
    shard_size: int = Field(default=100, ge=1, le=10_000)  # images; what an interruption can cost
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"  # auto: float16 on a GPU

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
            raise ValueError("class names must be distinct and not empty")
        return tuple(sorted(classes))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was generated; images + withheld = classes x per_class."""

    out: str
    images: int
    withheld: int  # that the pipeline's own safety checker blackened
    per_class: dict[str, int]  # images
    shards: int
    num_done_before: int  # shards that were there
    prompts: int
    notes: tuple[str, ...]
    seconds: float
