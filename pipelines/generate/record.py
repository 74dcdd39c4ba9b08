"""The run.json of a generation: what a folder was begun with, and whether a second run may resume it."""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.errors import BadInput, Incompatible
from pipelines.generate.config import GenerateConfig
from pipelines.generate.painter import Painter

_OURS = re.compile(r"\d{5}\.tar|\d{5}_stats\.json|prompts\.jsonl|run\.json|\..+\.tmp")
_FREE = {"out", "device", "batch_size"}  # settings that may differ between runs into the same folder


def refuse_others(out: Path) -> None:
    """Raise BadInput if a folder holds files that no generation wrote."""
    if strange := [path.name for path in out.iterdir() if not _OURS.fullmatch(path.name)]:
        raise BadInput(f"{out} holds {min(strange)}, which no generation wrote. Name another folder with --out.")


def begun(config: GenerateConfig) -> dict[str, Any] | None:
    """Read the run.json of the run that this one resumes; None if it is the first.

    Raises BadInput if the folder holds something else, Incompatible if it was begun with other settings.
    """
    path = config.out / "run.json"
    try:
        found = json.loads(path.read_bytes())
        settings = found["config"]
        assert found["stage"] == "generate"
    except FileNotFoundError:
        if tar := min(config.out.glob("*.tar"), default=None):
            raise BadInput(f"{tar} is there without the run.json of a generation. Name another folder.") from None
        return None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise BadInput(f"{path} was not written by a generation. Name another folder with --out.") from None
    for name, value in _settings(config).items():
        if value != settings.get(name):
            raise Incompatible(
                f"{config.out} was begun with {name} = {settings.get(name)!r}, not {value!r}. Use that again, or name "
                "another folder with --out."
            )
    assert isinstance(found, dict)
    return found


def _settings(config: GenerateConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_FREE)


def describe(config: GenerateConfig, painter: Painter) -> dict[str, Any]:
    """The run.json of a generation without its counts."""
    return {
        "stage": "generate",
        "config": _settings(config),
        "image_model": {"name": config.image_model, "revision": painter.revision, **painter.settings},
        "prompts": hashlib.sha256((config.out / "prompts.jsonl").read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in ("diffusers", "torch", "transformers")},
        "classes": config.classes,
    }


def compare(config: GenerateConfig, begun: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise Incompatible if a folder was begun with another image model or other prompts than `ours`."""
    for name, what in (("image_model", "another image model or precision"), ("prompts", "another prompts.jsonl")):
        if begun[name] != ours[name]:
            raise Incompatible(
                f"{config.out} was begun with {what} ({begun[name]}, now {ours[name]}). Restore it, or name another "
                "folder with --out."
            )
