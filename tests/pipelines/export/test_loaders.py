"""An export of a mixed crawl opens in the loaders that people train with, by the lines of its own card."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.pipelines.export import mixed
from tests.pipelines.export.exports import read_plainly

CHECKED_APART = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    mixed.exported(root)
    return root / "clean"


@pytest.fixture(scope="module")
def without_captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    mixed.exported(root, captions=False, scored=False)
    return root / "clean"


def printed(code: str, cwd: Path) -> Any:
    """What code prints as its last line, in a process of its own: these libraries warn, and change the interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=200,
        env=os.environ | CHECKED_APART | {"HF_HOME": str(cwd / "hf")}  # else `clean` here is that of another test,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def card_code(out: Path, library: str) -> str:
    """The block of the card that names a library."""
    blocks = (out / "README.md").read_text().split("```")[1::2]
    (block,) = [block for block in blocks if library in block]
    return block.partition("\n")[2]


def test_webdataset_finds_the_same_members_in_each_sample(clean: Path) -> None:
    samples = read_plainly(*sorted(clean.glob("*.tar")))
    assert len(samples) == mixed.NUM
    kept = pq.read_table(clean / "kept.parquet").to_pylist()
    for sample, row in zip(samples, kept, strict=True):
        number = int(row["member"].partition(".")[0])
        assert {name for name in sample if not name.startswith("__")} == {"jpg", "cls", "txt", "json"}
        assert sample["jpg"] == mixed.picture(number)
        assert sample["txt"].decode() == mixed.caption(number)
        values = json.loads(sample["json"])
        assert values["curate"]["format"] == row["format"] == ("jpg", "png", "webp")[number % 3]
        assert values["curate"]["declared"] == ("camera" if number >= 18 else "")
        assert (values["curate"]["width"], values["curate"]["height"]) == (40, 48)


def test_each_field_of_the_json_has_one_type_and_its_value(clean: Path) -> None:
    samples = read_plainly(*sorted(clean.glob("*.tar")), decode=False)
    found = [json.loads(sample["json"]) for sample in samples]
    assert len({tuple(values) for values in found}) == 1
    for number, values in enumerate(found):
        own = mixed.metadata(number) if number % 5 else {}
        assert "error" not in values  # null everywhere
        assert values["url"] == own.get("url", "")
        assert values["license"] == (own.get("license") or "")
        assert values["mixed"] == str(own.get("mixed", ""))
        assert values["size"] == {"width": "40" if own else "", "note": (own or {"size": {}})["size"].get("note") or ""}
        assert values["similarity"] == ("" if not own else json.dumps(own["similarity"]))  # text: some have none
        assert values["tags"] == ("" if not own else json.dumps(own["tags"]))
        assert values["boxes"] == ("[[1, 2], [3]]" if "boxes" in own else "")


@pytest.mark.slow
def test_datasets_loads_it_by_the_line_of_the_card(clean: Path) -> None:
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    code = card_code(clean, "load_dataset") + (
        "\nimport json; rows = list(dataset)"
        "\nprint(json.dumps([[r['jpg'].size, r['txt'], r['cls'], r['json']['curate']['declared']] for r in rows]))"
    )
    rows = printed(code, clean.parent)
    assert len(rows) == mixed.NUM
    kept = pq.read_table(clean / "kept.parquet").to_pylist()
    for (size, text, label, declared), row in zip(rows, kept, strict=True):
        number = int(row["member"].partition(".")[0])
        assert (size, text, int(label)) == ([40, 48], mixed.caption(number), row["cls"])
        assert declared == ("camera" if number >= 18 else "")


@pytest.mark.slow
def test_datasets_streams_it_and_loads_one_without_captions_or_scores(without_captions: Path) -> None:
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    code = card_code(without_captions, "load_dataset").replace('split="train"', 'split="train", streaming=True')
    code += "\nimport json; print(json.dumps([[r['jpg'].size, sorted(r)] for r in dataset]))"
    rows = printed(code, without_captions.parent)
    assert len(rows) == mixed.NUM
    names = ["__key__", "__url__", "jpg", "json"]
    assert rows == [[[40, 48], names]] * mixed.NUM


@pytest.mark.slow
def test_energon_prepares_and_lints_it(clean: Path) -> None:
    pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")
    line = card_code(clean, "energon prepare").strip()
    energon = Path(sys.executable).parent / "energon"
    program = str(energon) if energon.exists() else f"{sys.executable} -m megatron.energon.cli.main"
    script = line.replace("energon prepare", f"{program} prepare") + f" && {program} lint clean/"
    done = subprocess.run(
        ["bash", "-c", script], cwd=clean.parent, capture_output=True, text=True, timeout=280,
        env=os.environ | CHECKED_APART,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert "rror" not in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.slow
def test_open_clip_trains_on_every_image(clean: Path) -> None:
    pytest.importorskip("open_clip_train", reason="open_clip is not installed")
    code = f"""
import functools, json, types, torch
from open_clip_train import data  # made for webdataset up to 0.2.86, whose reader marks no end of a shard
data.tar_file_expander = functools.partial(data.tar_file_expander, eof_value=None)
args = types.SimpleNamespace(train_data="{clean}/{{00000..00002}}.tar", train_num_samples={mixed.NUM}, batch_size=4,
    workers=1, world_size=1, seed=0, dataset_resampled=False, train_data_upsampling_factors=None)
found = data.get_wds_dataset(args, lambda image: torch.tensor(image.size), True, tokenizer=lambda text: [text])
print(json.dumps(sorted(text for sizes, texts in found.dataloader for text in texts)))
"""
    texts = printed(code, clean.parent)
    assert sorted(texts) == sorted(mixed.caption(number) for number in range(mixed.NUM))


@pytest.mark.slow
def test_parquet_is_what_datasets_reads_with_named_labels(tmp_path: Path) -> None:
    mixed.exported(tmp_path, format="parquet")
    shards = sorted((tmp_path / "clean").glob("0*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert [row["image"]["bytes"] for row in rows] == [mixed.picture(number) for number in range(mixed.NUM)]
    assert [row["text"] for row in rows] == [mixed.caption(number) for number in range(mixed.NUM)]
    assert Image.open(io.BytesIO(rows[2]["image"]["bytes"])).format == "WEBP"
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    code = card_code(tmp_path / "clean", "load_dataset") + (
        "\nimport json; label = dataset.features['label']"
        "\nprint(json.dumps([[r['image'].size, r['text'], label.int2str(r['label'])] for r in dataset]))"
    )
    read = printed(code, tmp_path)
    assert read == [[[40, 48], row["text"], row["pseudo_label"]] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
def test_croissant_describes_it_and_its_records_are_read(tmp_path: Path, format_: str) -> None:
    pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    mixed.exported(tmp_path, format=format_)
    records = "images" if format_ == "parquet" else "kept"
    code = f"""
import itertools, json, logging, mlcroissant
dataset = mlcroissant.Dataset("clean/croissant.json")
assert not dataset.metadata.ctx.issues.errors, dataset.metadata.ctx.issues.report()
rows = list(dataset.records("{records}"))
print(json.dumps([row["{records}/key"].decode() for row in rows]))
"""
    assert len(printed(code, tmp_path)) == mixed.NUM
