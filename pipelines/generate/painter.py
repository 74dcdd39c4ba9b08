"""Make images from prompts with a text-to-image pipeline of diffusers."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines.compute import devices
from pipelines.errors import BadInput
from pipelines.generate import hub
from pipelines.generate.config import GenerateConfig
from pipelines.generate.jobs import Job


class Painter:
    """A text-to-image pipeline and its settings."""

    def __init__(self, pipeline: Any, revision: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self.revision = revision
        self.settings = settings  # for run.json
        self._arguments = arguments

    @classmethod
    def load(cls, config: GenerateConfig, revision: str | None) -> "Painter":
        """Load the image model, from safetensors only. `revision` on the hub applies if the configuration names none.

        Raises BadInput if it cannot be loaded or does not know a setting.
        """
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
                what = f"{type(pipeline).__name__} of {config.image_model}"
                raise BadInput(f"{what} has no setting {name}. Leave out --{flag}.")
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
        """Make an image for each job; None where the pipeline's own safety checker withheld it."""
        # Noise is drawn on the CPU, so that every device starts from the same one.
        generators = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self._pipeline(prompt=[job.prompt.text for job in jobs], generator=generators, **self._arguments)
        withheld = getattr(result, "nsfw_content_detected", None) or [False] * len(jobs)
        return [None if flag else image.convert("RGB") for image, flag in zip(result.images, withheld, strict=True)]
