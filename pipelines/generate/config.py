"""Configuration and summary of `curate generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines import settings


class GenerateConfig(BaseModel):
    """What to generate, and with which models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...] = Field(min_length=1, description="Names of the classes.")
    per_class: int = Field(ge=1, description="Images of each class.")
    out: Path = Field(description="Folder to write. If a generation was interrupted there, it resumes.")
    prompt_model: str = Field(
        default="google/flan-t5-base",
        description="Model that writes the prompts: a sequence-to-sequence model of the Hugging Face hub, or a folder.",
    )
    prompt_revision: str | None = Field(
        default=None,
        description="Revision of the prompt model on the hub. Without it, the newest; a resumed generation keeps its "
        "first.",
    )
    prompts_per_class: int = Field(default=20, ge=1, description="Prompts of each class.")
    instruction: str = Field(
        default="Write a caption for a photo of {class}. Say in one sentence where it is, what is around it, and how "
        "it is lit.",
        description='Instruction to the prompt model. {class} becomes the class with its article, "an airplane".',
    )
    image_model: str = Field(
        default="CompVis/stable-diffusion-v1-4",
        description="Text-to-image pipeline of diffusers: a model of the Hugging Face hub, or a folder.",
    )
    image_revision: str | None = Field(
        default=None,
        description="Revision of the image model on the hub. Without it, the newest; a resumed generation keeps its "
        "first.",
    )
    steps: int | None = Field(default=None, ge=1, description="Denoising steps; without it, the pipeline's own number.")
    guidance: float | None = Field(default=None, ge=0, description="Guidance scale; without it, the pipeline's own.")
    size: int | None = Field(
        default=None,
        ge=8,
        multiple_of=8,
        description="Side of the images in pixels, a multiple of 8; without it, the pipeline's own.",
    )
    codec: Literal["png", "jpg"] = Field(default="png", description="File format of the images.")
    seed: int = Field(default=0, ge=0, description="Seed of prompts and images.")
    batch_size: int = Field(default=4, ge=1, description="Images that are generated at once.")
    shard_size: int = Field(
        default=100, ge=1, le=10_000, description="Images in a shard; an interruption costs at most one shard."
    )
    device: Literal["auto", "cuda", "cpu"] = settings.device()
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Precision of the image model; auto is float16 on a GPU, else float32."
    )

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
    withheld: int  # images that the pipeline's own safety checker blacked out
    per_class: dict[str, int]  # images
    shards: int
    num_done_before: int  # shards that an earlier call had generated
    prompts: int
    notes: tuple[str, ...]
    seconds: float
