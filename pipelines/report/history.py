"""How a pool and a run were made: the command and configuration of each stage that left a record."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import CorruptShard
from pipelines.storage import locations
from pipelines.storage.locations import Location

_SOURCES = 20  # shown of an ingest
_INGESTS = 10  # shown, the latest


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of a stage, and what is needed to repeat it."""

    title: str
    command: str
    file: str  # name of the configuration file that the command reads
    toml: str  # contents of that file
    versions: dict[str, str]
    facts: dict[str, Any]


def stages(pool: Location, run: Location, folder: Location) -> list[Stage]:
    """The stages that left a record: latest ingests in the pool, training in the run, scoring in `folder`."""
    found = []
    for number, ingest in enumerate(read_record(pool / "run.json").get("ingests", [])[-_INGESTS:], 1):
        sources = ingest["config"]["sources"]
        options = {name: value for name, value in ingest["config"].items() if name != "sources"}
        more = f" ({len(sources) - _SOURCES} more)" if len(sources) > _SOURCES else ""
        found.append(
            Stage(
                title="Ingest",
                command=f"curate ingest {shlex.join(sources[:_SOURCES])}{more} --config ingest-{number}.toml",
                file=f"ingest-{number}.toml",
                toml=toml(options),
                versions=ingest["versions"],
                facts={"finished": ingest["finished_at"], "digest of the input": ingest["input_digest"]},
            )
        )
    for name, path in (("train", run / "run.json"), ("score", folder / "scores.json")):
        record = read_record(path)
        if "config" in record:
            found.append(
                Stage(
                    title=name.capitalize(),
                    command=f"curate {name} --config {name}.toml",
                    file=f"{name}.toml",
                    toml=toml(record["config"]),
                    versions=record.get("versions", {}),
                    facts={"seconds": round(record.get("summary", {}).get("seconds", 0.0), 1)},
                )
            )
    return found


def toml(values: Mapping[str, Any], table: str = "") -> str:
    """A configuration as TOML, a group of settings as a table; values of None are left out, as TOML has no such value.

    `table` is the name of the table that `values` are in, empty at the top.
    """
    # Strings, numbers and lists of JSON are valid TOML.
    lines = [f"[{table}]"] if table else []
    for name, value in values.items():
        if value is not None and not isinstance(value, Mapping):
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    groups = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    tables = (toml(group, f"{table}.{name}" if table else name) for name, group in groups.items())
    return "\n\n".join(["\n".join(lines), *tables])


def read_record(path: Location) -> dict[str, Any]:
    """The JSON object that a stage wrote, empty if there is no file; CorruptShard if it is not JSON."""
    try:
        values = json.loads(locations.read(path))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise CorruptShard(f"{path} is not JSON. Remove it, and repeat the command that writes it.") from None

    return values if isinstance(values, dict) else {}
