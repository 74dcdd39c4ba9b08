"""Runs the five commands on the demo's crawl, and writes what they print into first-run.md and README.md.

    python docs/outputs.py [FOLDER]

It takes a minute or two, and replaces `first-run.md`, `found.jpg`, and the text between the marks in `README.md`. The
figures in the outputs are those of this machine; progress and seconds are left out. In a FOLDER, which is kept, another
run repeats only the commands whose output is not there yet.
"""

import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from curate.commands.demo import LABELS_PER_CLASS, NUM_REAL, SIDES, SURELY_REAL
from pipelines import toy
from pipelines.pool.manifest import Pool
from pipelines.run.scores import ScoredPool

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
COLUMNS = 96

# Each command, and the beginnings of those lines of its output that README shows.
COMMANDS: dict[str, tuple[str, ...]] = {
    "curate ingest crawl": ("kept ", "rejected "),
    "curate train --labeled seed --config demo": ("Whether ", "At least "),
    "curate score": ("real, images", "unsure, images", "synthetic, images"),
    "curate report": ("Report in ",),
    f'curate export --out clean --where "{SURELY_REAL}"': ("kept  ", "dropped: "),
}

START, END = "<!-- outputs -->\n", "<!-- /outputs -->"
_NOT_SHOWN = re.compile(r"(ingest|train|score|report|export): \d+ of |Reading \d+ images takes|seconds |took ")

_PAGE = """\
# What the commands print

The five commands on the crawl of `curate demo`: {real} photographs of painted shapes and {synthetic} generated pictures
of 256 to 512 pixels. Known are {labels} labeled real ones, which are not in the crawl. `python docs/outputs.py` ran the
commands and wrote this page, with the picture; progress and times are left out. `--config demo` is for this toy alone:
fewer steps and smaller views.

![Pictures of the crawl as they come, and the same with what curate says of them](found.jpg)

{blocks}
"""


def main() -> None:
    """Write the page, the block of README and the picture."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if not (home / "truth.parquet").exists():
            toy.make(home, num_real=NUM_REAL, labels_per_class=LABELS_PER_CLASS, num_test=0, sides=SIDES)
        printed = {command: _run(command, home) for command in COMMANDS}
        _draw(home, DOCS / "found.jpg")
    blocks = "\n\n".join(_block([(command, lines)]) for command, lines in printed.items())
    labels = LABELS_PER_CLASS * len(toy.CLASSES)
    page = _PAGE.format(real=NUM_REAL, synthetic=NUM_REAL // 2, labels=labels, blocks=blocks)
    (DOCS / "first-run.md").write_text(page, encoding="utf-8")
    block = _block([(command, _shown(lines, COMMANDS[command])) for command, lines in printed.items()])
    before, rest = README.read_text(encoding="utf-8").split(START)
    README.write_text(f"{before}{START}{block}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _run(command: str, home: Path) -> list[str]:
    """Run a command in a folder, if that was not done before; returns the lines it printed."""
    _, *arguments = shlex.split(command)
    kept = home / f"{arguments[0]}.txt"
    if not kept.exists():
        environment = os.environ | {"COLUMNS": str(COLUMNS), "PYTHONPATH": str(DOCS.parent)}
        run = [sys.executable, "-m", "curate", *arguments]
        done = subprocess.run(
            run, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{done.stdout}")
        kept.write_text(done.stdout, encoding="utf-8")
    lines = [line.rstrip() for line in kept.read_text(encoding="utf-8").splitlines() if not _NOT_SHOWN.match(line)]
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> Sequence[str]:
    """A sentence in lines of the terminal's width."""
    return [line] if len(line) <= COLUMNS else textwrap.wrap(line, COLUMNS, subsequent_indent="    ")


def _shown(lines: Sequence[str], beginnings: Sequence[str]) -> list[str]:
    """Those lines that begin so, with the rest of their sentences."""
    shown = list[str]()
    for beginning in beginnings:
        found = [i for i, line in enumerate(lines) if line.startswith(beginning)]
        if not found:
            raise SystemExit(f"No line begins with {beginning!r}: put what README should show into COMMANDS.")
        for i in found:
            shown.append(lines[i])
            shown += takewhile(lambda line: line.startswith("    "), lines[i + 1 :])
    return shown


def _block(runs: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Commands with their outputs, as a terminal shows them."""
    lines = [line for command, output in runs for line in (f"$ {command}", *output)]
    return "\n".join(("```console", *lines, "```"))


# The picture

_ROWS, _ACROSS, _TILE, _GAP, _BAR = 2, 8, 150, 6, 30
_COLORS = {"real": "#2e7d32", "unsure": "#b26a00", "synthetic": "#c62828"}


def _draw(home: Path, file: Path) -> None:
    """Draw pictures of the pool as they come, and below them the same with their verdicts."""
    scored = ScoredPool.open(home / "pool", home / "run")
    shard = scored.shards[0]
    table = scored.rows(shard, ["key", "verdict", "prob_synthetic"])
    rows = table.take(list(range(0, table.num_rows, table.num_rows // (_ROWS * _ACROSS)))[: _ROWS * _ACROSS])
    pictures = _pictures(scored.pool, shard, rows["key"].to_pylist())
    height = _BAR + _ROWS * (_TILE + _GAP)
    sheet = Image.new("RGB", (_ACROSS * (_TILE + _GAP) + _GAP, 2 * height + _GAP), "white")
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(20), ImageFont.load_default(16)
    for top, title in ((0, "The crawl, as it comes"), (height, "What curate says: real images are exported")):
        draw.text((_GAP, top + 4), title, fill="black", font=font)
    probabilities = rows["prob_synthetic"].to_pylist()
    for i, (picture, verdict) in enumerate(zip(pictures, rows["verdict"].to_pylist(), strict=True)):
        x, y = _GAP + i % _ACROSS * (_TILE + _GAP), _BAR + i // _ACROSS * (_TILE + _GAP)
        sheet.paste(picture, (x, y))
        y += height
        faded = picture if verdict == "real" else Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.55)
        sheet.paste(faded, (x, y))
        draw.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), outline=_COLORS[verdict], width=4)
        draw.rectangle((x, y + _TILE - 24, x + _TILE - 1, y + _TILE - 1), fill=_COLORS[verdict])
        draw.text((x + 6, y + _TILE - 23), f"{verdict} {probabilities[i]:.2f}", fill="white", font=small)
    sheet.save(file, quality=85, optimize=True)


def _pictures(pool: Pool, shard: str, keys: Sequence[str]) -> list[Image.Image]:
    """Square pictures, by key, of a shard."""
    with tarfile.open(pool.tar(shard)) as tar:
        contents = [file.read() for key in keys if (file := tar.extractfile(f"{key}.jpg"))]
    opened = (Image.open(io.BytesIO(content)).convert("RGB") for content in contents)
    return [ImageOps.fit(picture, (_TILE, _TILE)) for picture in opened]


if __name__ == "__main__":
    main()
