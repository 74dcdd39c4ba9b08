"""Maps of a sample's embeddings, and what the page's script needs to tell and to list the images on them."""

import io
from base64 import b64encode
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pipelines.distribution import pip_install
from pipelines.errors import BadInput
from pipelines.images.check import foreign_images
from pipelines.images.thumbnails import thumbnail
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick
from pipelines.report import charts
from pipelines.report.figures import VERDICTS, Figure
from pipelines.report.survey import Survey, read_rows
from pipelines.run.scores import ScoredPool

MAPPED = 3_000  # images on the map
TILES = 1_500  # of these that have a small picture
TILE = 40  # pixels of its side
SHEET_BYTES = 450_000  # of all small pictures, which are tiles of one

_QUALITIES = (60, 35, 15, 1)


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """The maps, one for verdicts and one for classes, and the images on them."""

    figures: list[Figure]
    data: dict[str, Any]  # of the script: columns with a value for each image; the first of them have tiles


def draw(
    kind: Literal["auto", "tsne", "pca"], pool: Pool, scored: ScoredPool, found: Survey, on_tick: OnTick
) -> Mapped | None:
    """Map a sample's embeddings, colored by verdict and by class; None for fewer than three images."""
    rows = found.sample.slice(0, MAPPED)
    if rows.num_rows < 3:
        return None
    on_tick(Tick(done=0, total=rows.num_rows, unit="images mapped"))
    points_N2, how = project(_embeddings(scored, rows), kind)
    pixels_N2 = charts.placed(points_N2)
    drawn: list[Figure] = []
    colors = []
    if found.scores is not None:
        verdict = np.asarray(rows["verdict"].to_pylist())
        groups = {name: verdict == name for name, _ in VERDICTS}
        about = f"{how}. Of {rows.num_rows:,} images {groups['synthetic'].mean():.1%} are called synthetic."
        drawing = charts.points("map-verdict", "Embeddings by verdict", about, pixels_N2, groups)
        drawn.append(Figure(title="By verdict", drawing=drawing, legend=list(VERDICTS), text=how))
        colors.append(verdict.tolist())
    if found.classes:
        groups, legend = _classes(rows, found)
        about = f"{how}. Colored by pseudo-label."
        drawing = charts.points("map-class", "Embeddings by class", about, pixels_N2, groups)
        drawn.append(Figure(title="By class", drawing=drawing, legend=legend, text=how))
        color_N = np.full(rows.num_rows, "rest", dtype=object)
        for name, members in groups.items():
            color_N[members] = name
        colors.append(color_N.tolist())
    address, columns = _sheet(pool, rows.slice(0, TILES))
    on_tick(Tick(done=rows.num_rows, total=rows.num_rows, unit="images mapped"))
    data = {
        "x": pixels_N2[:, 0].tolist(),
        "y": pixels_N2[:, 1].tolist(),
        "keys": rows["key"].to_pylist(),
        "verdicts": rows["verdict"].to_pylist(),
        "labels": rows["pseudo_label"].to_pylist(),
        "scores": [None if prob is None else round(prob, 3) for prob in rows["prob_synthetic"].to_pylist()],
        "colors": colors,  # of each map, CSS classes
        "sheet": address,
        "tile": TILE,
        "tiles": min(TILES, rows.num_rows),
        "columns": columns,
    }
    return Mapped(figures=drawn, data=data)


def _classes(rows: pa.Table, found: Survey) -> tuple[dict[str, npt.NDArray[np.bool_]], list[tuple[str, str]]]:
    """Members (N,) of the largest classes by CSS class, and the legend."""
    labels = np.asarray(rows["pseudo_label"].to_pylist(), dtype=object)
    largest = sorted(found.classes, key=lambda name: -found.classes[name].num_images)
    largest = sorted(largest[: charts.COLORS], key=list(found.classes).index)
    groups = {"rest": ~np.isin(labels, largest)} if len(found.classes) > charts.COLORS else {}
    groups |= {f"c{i}": labels == name for i, name in enumerate(largest)}
    legend = [(f"c{i}", name) for i, name in enumerate(largest)] + [("rest", "other classes")] * ("rest" in groups)
    return groups, legend


def _sheet(pool: Pool, rows: pa.Table) -> tuple[str, int]:
    """One picture of all tiles, as an address, and the number of tiles in a line; at most SHEET_BYTES."""
    columns = int(np.ceil(np.sqrt(rows.num_rows)))
    whole = Image.new("RGB", (columns * TILE, -(-rows.num_rows // columns) * TILE), "white")
    with foreign_images():
        for number, content in enumerate(read_rows(pool, rows)):
            tile = thumbnail(content, TILE, TILE)
            line, column = divmod(number, columns)
            whole.paste(tile, (column * TILE + (TILE - tile.width) // 2, line * TILE + (TILE - tile.height) // 2))
    for quality in _QUALITIES:
        out = io.BytesIO()
        whole.save(out, "WEBP", quality=quality)
        if out.tell() <= SHEET_BYTES:
            break
    return f"data:image/webp;base64,{b64encode(out.getvalue()).decode()}", columns


def _embeddings(scored: ScoredPool, rows: pa.Table) -> npt.NDArray[np.float32]:
    """Embeddings (N, D) of rows of the sample, at unit length."""
    shards, numbers = np.asarray(rows["shard"].to_pylist()), rows["row"].to_numpy()
    found: npt.NDArray[np.float32] | None = None
    for shard in np.unique(shards).tolist():
        inside = np.flatnonzero(shards == shard)
        part = scored.embeddings(shard)[numbers[inside]].astype(np.float32)
        if found is None:
            found = np.empty((len(shards), part.shape[1]), dtype=np.float32)
        found[inside] = part
    assert found is not None
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def project(
    embeddings_ND: npt.NDArray[np.float32], kind: Literal["auto", "tsne", "pca"]
) -> tuple[npt.NDArray[np.floating[Any]], str]:
    """Coordinates (N, 2) on a map, and a sentence on how it was made.

    Raises BadInput if `kind` is "tsne" and openTSNE is not installed; "auto" then uses PCA.
    """
    has_tsne = find_spec("openTSNE") is not None
    if kind == "tsne" and not has_tsne:
        raise BadInput(
            f"--map tsne: openTSNE is not installed. Install it with `{pip_install('viz')}`, or use --map pca."
        )
    if kind == "pca" or not has_tsne:
        centered = embeddings_ND - embeddings_ND.mean(0)
        values, vectors = np.linalg.eigh(centered.T @ centered)
        share = float(values[-2:].sum() / max(values.sum(), 1e-12))
        how = f"The first two principal components, with {share:.0%} of the variance"
        return centered @ vectors[:, :-3:-1], how if kind == "pca" else f"{how}; {pip_install('viz')} for t-SNE"
    from openTSNE import TSNE

    perplexity = min(30.0, (len(embeddings_ND) - 1) / 3)
    # On a busy machine, several threads that wait for each other are many times slower than one.
    tsne = TSNE(perplexity=perplexity, initialization="pca", neighbors="exact", n_jobs=1, random_state=0)
    return (
        np.asarray(tsne.fit(embeddings_ND)),
        f"t-SNE with perplexity {perplexity:g}: neighborhoods are meaningful, distances are not",
    )
