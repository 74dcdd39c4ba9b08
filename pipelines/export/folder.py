"""The folder of an export, which appears whole: it is written beside an earlier export and then replaces it.

An object store cannot rename. There the earlier export is removed first, and `run.json`, written last, shows that the
new one is complete.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import BadInput
from pipelines.storage import locations, locks
from pipelines.storage.atomic import sync, write_json
from pipelines.storage.locations import Location

_BEGUN = ".export.partial"  # in a store, as long as the export there is incomplete
_OURS = re.compile(
    r"\d+\.(tar|parquet)|\d+_stats\.json|(kept|dropped)\.parquet|uids\.npy|(run|croissant)\.json|classes\.txt|README\.md"
    r"|\.export\.partial"
)


@contextmanager
def opened(out: Location) -> Iterator[Location]:
    """Yield the folder to write to, which becomes `out` at the end.

    Raises BadInput if `out` holds anything but an earlier export, Incompatible if another process is exporting to it.
    """
    if not isinstance(out, Path):
        _refuse_others(out, out)
        yield out
        locations.remove(out / _BEGUN)
        return
    with _working_folder(out) as work:
        yield work
        _replace(out.resolve(), work)


def clear(work: Location) -> None:
    """Remove an earlier export from a store; until the new one is complete, a file shows that it is ours."""
    if not isinstance(work, Path):
        write_json(work / _BEGUN, {"stage": "export"})
        locations.remove(work / "run.json")  # first: without it, nobody takes the rest for an export
        for name in locations.names(work):
            if name != _BEGUN:
                locations.remove(work / name)


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """Check that `out` may be replaced, and yield an empty folder beside it, which is removed on failure.

    The folder is locked for this export until it has become `out`.
    """
    called, out = out, out.resolve()
    if out.is_file():
        raise BadInput(f"{called} is a file. Name a folder with --out.")
    work = out.with_name(f".{out.name}.partial")
    with locks.held(work, called=called):
        try:
            _refuse_others(out, called)
            if not out.exists() and _before(out).exists():
                _before(out).rename(out)  # an export was killed between its last two renames
            for path in work.iterdir():  # left by an export that was killed
                path.unlink()
            yield work
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def _refuse_others(out: Location, called: Location) -> None:
    """Raise BadInput if `out` holds anything but an export, complete or begun."""
    found = locations.names(out)
    strange = [name for name in found if not _OURS.fullmatch(name)]
    if strange or (found and _BEGUN not in found and not _is_export(out)):
        what = f"holds {strange[0]}, which no export wrote" if strange else "is not an export"
        raise BadInput(f"{called} {what}. Name another folder with --out.")


def _is_export(out: Location) -> bool:
    try:
        return bool(json.loads(locations.read(out / "run.json"))["stage"] == "export")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(out: Path, work: Path) -> None:
    """Replace `out` by `work`. Whenever this is killed, one of them is complete, and the next export finds it."""
    before = _before(out)
    shutil.rmtree(before, ignore_errors=True)
    for path in work.iterdir():
        sync(path)
    sync(work)
    if out.exists():
        out.rename(before)
    work.rename(out)
    sync(out.parent)
    shutil.rmtree(before, ignore_errors=True)


def _before(out: Path) -> Path:
    return out.with_name(f".{out.name}.before")
