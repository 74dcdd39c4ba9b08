"""curate from Python: the commands as functions, and what they leave as tables.

    import curate

    curate.ingest("crawl/", pool="pool")
    summary = curate.train("seed/", pool="pool", run="run", num_steps=1000)
    print(summary.quality.auroc, summary.labels.accuracy)
    curate.score(pool="pool", run="run")
    table = curate.Scores("run", pool="pool").table(["key", "url", "prob_synthetic", "verdict"])
    curate.Detector("run").score(["photo.jpg"]).to_pylist()
    curate.export("clean/", pool="pool", run="run", where="prob_synthetic < 0.1")

A function has the name of its command, its keyword arguments those of the command's options and of the settings in
docs/configuration.md, with underscores. `config` is a TOML file or the name of a recipe. Each returns the summary that
the command prints with --json, as a dataclass. All raise CurateError, with the sentence that the command prints.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel

from curate.config import resolve, setting
from curate.options import settings_of, with_home
from pipelines import export as export_stage
from pipelines import ingest as ingest_stage
from pipelines import report as report_stage
from pipelines import score as score_stage
from pipelines import train as train_stage
from pipelines import verify as verify_stage
from pipelines.errors import BadInput, why
from pipelines.progress import OnTick, ignore

if TYPE_CHECKING:
    import pyarrow as pa


Config = TypeVar("Config", bound=BaseModel)


def ingest(
    *sources: str | Path,
    pool: str | Path = "pool",
    config: str | None = None,
    on_tick: OnTick = ignore,
    **settings: Any,
) -> ingest_stage.Summary:
    """Bring a crawl into the pool: folders, tars, parquet files or URLs."""
    given = {"sources": tuple(map(str, sources)) or None, "pool": pool}
    return ingest_stage.run(_settings(ingest_stage.IngestConfig, given | settings, config), on_tick)


def train(
    labeled: str | Path,
    *,
    pool: str | Path = "pool",
    run: str | Path = "run",
    config: str | None = None,
    on_tick: OnTick = ignore,
    **settings: Any,
) -> train_stage.Summary:
    """Train detector and classifier; without `config`, by the recipe that fits the pool and the device."""
    from pipelines.train import plan

    given = {"labeled": labeled, "pool": pool, "run": run} | settings
    found = _settings(train_stage.TrainConfig, given, config)
    if config is None and (recipe := plan.recipe_of(found)) is not None:
        found = _settings(train_stage.TrainConfig, given, recipe)
    return train_stage.run(found, on_tick)


def score(
    *,
    pool: str | Path = "pool",
    run: str | Path = "run",
    config: str | None = None,
    on_tick: OnTick = ignore,
    **settings: Any,
) -> score_stage.Summary:
    """Score every image of the pool."""
    return score_stage.run(_settings(score_stage.ScoreConfig, {"pool": pool, "run": run} | settings, config), on_tick)


def report(
    *,
    pool: str | Path = "pool",
    run: str | Path = "run",
    config: str | None = None,
    on_tick: OnTick = ignore,
    **settings: Any,
) -> report_stage.Summary:
    """Write one HTML file on what is in the pool and what the verdicts rest on."""
    return report_stage.run(
        _settings(report_stage.ReportConfig, {"pool": pool, "run": run} | settings, config), on_tick
    )


def export(
    out: str | Path,
    *,
    pool: str | Path = "pool",
    run: str | Path = "run",
    config: str | None = None,
    on_tick: OnTick = ignore,
    **settings: Any,
) -> export_stage.Summary:
    """Write the images worth training on as shards that every loader reads."""
    given = {"out": out, "pool": pool, "run": run} | settings
    return export_stage.run(_settings(export_stage.ExportConfig, given, config), on_tick)


def verify(
    *,
    pool: str | Path = "pool",
    run: str | Path | None = None,
    config: str | None = None,
    on_tick: OnTick = ignore,
    **settings: Any,
) -> verify_stage.Summary:
    """Read a pool and its scores back, and list what is wrong with them."""
    given = {"pool": pool, "run": run} | settings
    return verify_stage.run(_settings(verify_stage.VerifyConfig, given, config), on_tick)


class Pool:
    """An ingested pool. MissingArtifact where there is none."""

    def __init__(self, path: str | Path = "pool") -> None:
        from pipelines.pool import manifest
        from pipelines.storage.locations import locate

        self.opened: manifest.Pool = manifest.Pool.open(locate(path))

    def __len__(self) -> int:
        return self.opened.num_images

    def table(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """A row for each image, with some columns of the manifest or with all; docs/ingest.md lists them."""
        import pyarrow as pa

        return pa.concat_tables(self.opened.tables(columns))


class Scores:
    """The scores that a run gave to a pool, with a person's marks. MissingArtifact before `curate.score`."""

    def __init__(self, run: str | Path = "run", pool: str | Path = "pool") -> None:
        from pipelines.run import scores
        from pipelines.storage.locations import locate

        self.opened: scores.ScoredPool = scores.ScoredPool.open(locate(pool), Path(run))

    def table(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """A row for each scored image, with some columns of manifest and scores or with all."""
        import pyarrow as pa

        return pa.concat_tables(self.opened.rows(shard, columns) for shard in self.opened.shards)


class Detector:
    """The trained model of a run, for images that are in no pool. MissingArtifact before the end of `curate.train`."""

    def __init__(self, run: str | Path = "run", device: Literal["auto", "cuda", "cpu"] = "auto") -> None:
        from pipelines.run.scorer import Scorer

        self._scorer = Scorer.load(Path(run), device)

    def score(self, images: Iterable[str | Path | bytes]) -> "pa.Table":
        """A row for each image, given as a path or as the bytes of its file.

        Columns are `prob_synthetic` (0..1), `verdict` (real, unsure or synthetic), `pseudo_label`, `confidence` (0..1,
        calibrated), `probs`, `raw_confidence` and `typicality`; without a detector or classes some are null. Raises
        CorruptShard for what is not an image, BadInput for a path that cannot be read.
        """
        import pyarrow as pa

        from pipelines.run.scores import SCORE_SCHEMA

        columns = [column for column in SCORE_SCHEMA if column.name not in ("key", "synthetic")]
        tables = [pa.schema(columns).empty_table()]
        for image in images:  # one at a time, as they are of any size
            found = self._scorer.score([image if isinstance(image, bytes) else _read(image)], [_name(image)])
            row = {column.name: getattr(found, column.name) for column in columns}
            if found.probs is not None:
                row["probs"] = [list(found.probs[0].astype("float16"))]
            arrays = [[None] if row[column.name] is None else list(row[column.name]) for column in columns]
            tables.append(pa.table(arrays, tables[0].schema))
        return pa.concat_tables(tables)


def _name(image: str | Path | bytes) -> str:
    return "an image" if isinstance(image, bytes) else str(image)


def _read(image: str | Path) -> bytes:
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise BadInput(f"{image}: cannot be read ({why(error)}).") from None


def _settings(kind: type[Config], given: dict[str, Any], config: str | None) -> Config:
    """Check keyword arguments, which are called like the options of a command."""
    fields, paths = settings_of(kind), {setting(kind, name): value for name, value in given.items()}
    return resolve(kind, {path: with_home(fields[path], value) for path, value in paths.items()}, config)
