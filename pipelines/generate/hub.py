"""Models that others have trained: loaded as safetensors, running no code and no pickle of theirs."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipelines.errors import BadInput, first_line

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # all that a model may consist of


@contextmanager
def loading(model: str, what: str) -> Iterator[None]:
    """Turn what loading `model` raises into one sentence; what its libraries deprecate is no business of the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise BadInput(
                f"curate generate needs {error.name or error}; pip install 'curate[generate]' brings it."
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:  # each library has its own
            raise BadInput(
                f"{model}: cannot be loaded as {what} ({first_line(error)}); give a folder or a name on the Hugging "
                "Face hub that holds one as safetensors."
            ) from error


def refuse_code(folder: Path) -> None:
    """Raise ValueError for a model that brings code: not every version of diffusers asks before it runs that."""
    if code := next(folder.rglob("*.py"), None):
        raise ValueError(f"it brings code of its own, {code.relative_to(folder)}, which is not run here")


def revision_of(folder: Path, model: str) -> str:
    """What pins the `model` in `folder`: the commit of a hub's snapshot, or a digest of the files of the user's own."""
    if folder != Path(model):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.rglob(pattern)):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:32]}"
