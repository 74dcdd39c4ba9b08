"""Load other people's models from safetensors only, without running their code or unpickling anything."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipelines.distribution import pip_install
from pipelines.errors import BadInput, first_line

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # all files that a model may consist of


@contextmanager
def loading(model: str, what: str) -> Iterator[None]:
    """Turn the errors of loading `model` into BadInput, and hide the deprecation warnings of its libraries.

    `what` says what the model should be: "a text-to-text model".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise BadInput(
                f"curate generate needs {error.name or error}. Install it: {pip_install('generate')}."
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:  # each library raises its own
            raise BadInput(
                f"{model} cannot be loaded as {what} ({first_line(error).rstrip('.')}). Give a folder or a name on the "
                "Hugging Face hub that holds one as safetensors."
            ) from error


def refuse_code(folder: Path) -> None:
    """Raise ValueError for a model that contains code: not every version of diffusers asks before running it."""
    if code := next(folder.rglob("*.py"), None):
        raise ValueError(f"it contains code, {code.relative_to(folder)}, which curate does not run")


def revision_of(folder: Path, model: str) -> str:
    """Revision of the `model` in `folder`: the commit of a hub's snapshot, or a digest of the user's own files."""
    if folder != Path(model):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.rglob(pattern)):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:32]}"
