import fcntl
import io
import json
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from pipelines import generate, ingest
from pipelines.benchmark import sources
from pipelines.errors import BadInput, Incompatible
from pipelines.generate import GenerateConfig
from pipelines.generate import stage as generate_stage
from pipelines.storage.shards import read_samples


def config_of(models: Any, out: Path, **settings: Any) -> GenerateConfig:
    defaults: dict[str, Any] = {
        "classes": ("disc", "cross", "maple_tree"), "per_class": 3, "prompts_per_class": 2, "steps": 2,
        "shard_size": 4, "batch_size": 2, "device": "cpu",
    }  # fmt: skip
    models_given = {"prompt_model": str(models.prompts), "image_model": str(models.images)}
    return GenerateConfig(**{"out": out, **models_given, **defaults, **settings})


@pytest.fixture(scope="module")
def generated(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated") / "out"
    summary = generate.run(config_of(tiny_models, out))
    assert (summary.images, summary.withheld, summary.shards, summary.prompts) == (9, 0, 3, 6)
    assert summary.per_class == {"cross": 3, "disc": 3, "maple_tree": 3} and not summary.notes
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        for key, sample in read_samples(path):
            found[key] = np.asarray(Image.open(io.BytesIO(sample["png"])), dtype=np.int16)
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file to the gc
def test_plain_webdataset_reads_images_classes_and_what_they_come_from(generated: Path) -> None:
    shards = [str(path) for path in sorted(generated.glob("*.tar"))]
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "cls", "json", "txt"))
    assert [label for _, label, _, _ in samples] == [0, 1, 2] * 3
    assert len({picture.tobytes() for picture, _, _, _ in samples}) == 9
    for picture, label, facts, text in samples:
        assert picture.size == (16, 16)
        assert facts["class"] == ("cross", "disc", "maple_tree")[label]
        assert facts["prompt"] == text and facts["class"].replace("_", " ") in text
        assert (facts["steps"], facts["guidance"], facts["seed"], facts["dtype"]) == (2, 7.5, 0, "float32")
        assert facts["image_revision"].startswith("sha256:") and facts["prompt_revision"].startswith("sha256:")
    assert len({facts["image_seed"] for _, _, facts, _ in samples}) == 9


def test_it_is_a_source_of_the_benchmark_and_of_ingest(generated: Path, tmp_path: Path) -> None:
    source = sources.read(generated)
    assert source.classes == ("cross", "disc", "maple_tree") and source.labels.tolist() == [0, 1, 2] * 3
    members = [sample["png"] for path in sorted(generated.glob("*.tar")) for _, sample in read_samples(path)]
    assert list(source.images) == members
    shards = tuple(map(str, generated.glob("*.tar")))
    summary = ingest.run(ingest.IngestConfig(sources=shards, pool=tmp_path / "pool", jobs=1))
    assert (summary.kept, summary.read) == (9, 9)


def test_another_run_gives_the_same_bytes_and_another_seed_others(
    generated: Path, tiny_models: Any, tmp_path: Path
) -> None:
    generate.run(config_of(tiny_models, tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(generated)
    generate.run(config_of(tiny_models, tmp_path / "other", seed=1))
    assert (tmp_path / "other" / "prompts.jsonl").read_bytes() != (generated / "prompts.jsonl").read_bytes()
    others = pixels(tmp_path / "other")
    assert all((others[key] != image).any() for key, image in pixels(generated).items())


def test_what_is_missing_is_made_again_and_nothing_else(generated: Path, tiny_models: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(generated, out)
    (out / "00001_stats.json").unlink()  # killed after the tar and before its mark
    (out / "00002.tar").rename(out / ".00002.tar.tmp")  # a tar that was half written, or is gone
    before = (out / "00000.tar").stat().st_mtime_ns
    assert generate.run(config_of(tiny_models, out)).num_done_before == 1
    assert contents(out) == contents(generated)
    assert (out / "00000.tar").stat().st_mtime_ns == before
    shutil.move(tiny_models.images, tmp_path / "images")  # with all shards there, no model is needed
    try:
        assert generate.run(config_of(tiny_models, out)).images == 9
    finally:
        shutil.move(tmp_path / "images", tiny_models.images)


def test_the_size_of_batches_changes_no_more_than_rounding(generated: Path, tiny_models: Any, tmp_path: Path) -> None:
    generate.run(config_of(tiny_models, tmp_path / "out", batch_size=3))
    for key, image in pixels(tmp_path / "out").items():
        assert np.abs(image - pixels(generated)[key]).max() <= 2


def test_prompts_of_the_users_own_need_no_prompt_model(tiny_models: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lines = [{"class": name, "prompt": f"{name} number {i}"} for name in ("disc", "cross") for i in range(2)]
    (out / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_of(
        tiny_models, out, classes=("cross", "disc"), prompt_model="nowhere", size=24, codec="jpg", shard_size=6
    )
    assert generate.run(config).prompts == 4
    samples = [sample for _, sample in read_samples(out / "00000.tar")]
    assert [sample["txt"].decode() for sample in samples] == [
        "cross number 0", "disc number 0", "cross number 1", "disc number 1", "cross number 0", "disc number 0",
    ]  # fmt: skip
    with Image.open(io.BytesIO(samples[0]["jpg"])) as image:
        assert image.format == "JPEG" and image.size == (24, 24)
    assert "prompt_model" not in json.loads(samples[0]["json"])
    (out / "prompts.jsonl").write_text("".join(json.dumps(line | {"prompt": "x"}) + "\n" for line in lines))
    (out / "00000_stats.json").unlink()
    with pytest.raises(Incompatible, match=r"was begun with another prompts\.jsonl"):
        generate.run(config)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"seed": 1}, Incompatible, r"was begun with seed = 0, not 1\. Use that again"),
        ({"per_class": 4}, Incompatible, r"was begun with per_class = 3"),
        ({"image_model": "elsewhere"}, Incompatible, r"was begun with image_model = "),
    ],
)
def test_a_folder_goes_on_with_what_it_was_begun_with(
    generated: Path, tiny_models: Any, settings: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        generate.run(config_of(tiny_models, generated, **settings))


def test_an_unfinished_folder_is_no_source_and_goes_on_with_its_own_model_alone(
    generated: Path, tiny_models: Any, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "images"
    shutil.copytree(generated, out)
    record = json.loads((out / "run.json").read_bytes())
    del record["summary"]
    (out / "run.json").write_text(json.dumps(record))
    (out / "00002_stats.json").unlink()
    with pytest.raises(BadInput, match="is not finished"):
        sources.read(out)
    shutil.copytree(tiny_models.images, other)
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_bytes())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"beta_end": 0.013}))
    record["config"]["image_model"] = str(other)  # the same place, with another content by now
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(Incompatible, match="was begun with another image model"):
        generate.run(config_of(tiny_models, out, image_model=str(other)))


class Trap:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled_and_no_code_of_a_model_runs(tiny_models: Any, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickled = shutil.copytree(tiny_models.images, tmp_path / "pickled")
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (pickled / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    coded = shutil.copytree(tiny_models.images, tmp_path / "coded")
    index = json.loads((coded / "model_index.json").read_bytes())
    (coded / "model_index.json").write_text(json.dumps(index | {"unet": ["trap", "UNet2DConditionModel"]}))
    (coded / "unet" / "trap.py").write_text(f"open({str(sprung)!r}, 'w')\nfrom diffusers import UNet2DConditionModel\n")
    for folder, why in ((pickled, "no file named"), (coded, r"contains code, unet/trap\.py")):
        with pytest.raises(BadInput, match=rf"cannot be loaded as a text-to-image pipeline of diffusers \(.*{why}"):
            generate.run(config_of(tiny_models, tmp_path / folder.name / "out", image_model=str(folder)))
    prompts = shutil.copytree(tiny_models.prompts, tmp_path / "prompts")
    (prompts / "model.safetensors").unlink()
    (prompts / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(BadInput, match="cannot be loaded as a text-to-text model"):
        generate.run(config_of(tiny_models, tmp_path / "out", prompt_model=str(prompts)))
    assert not sprung.exists() and not (tmp_path / "out").exists()


def test_images_that_the_models_safety_checker_blackens_are_left_out_and_counted(
    tiny_models: Any, tmp_path: Path
) -> None:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import StableDiffusionPipeline
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision = small | {"image_size": 16, "patch_size": 8}
        checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8))
        torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)  # below any cosine: all images are flagged
        processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        pipeline = StableDiffusionPipeline.from_pretrained(
            tiny_models.images, safety_checker=checker, feature_extractor=processor, requires_safety_checker=True
        )
        pipeline.save_pretrained(tmp_path / "images")
    config = config_of(tiny_models, tmp_path / "out", image_model=str(tmp_path / "images"), per_class=1)
    summary = generate.run(config)
    assert (summary.images, summary.withheld) == (0, 3)
    assert summary.notes == (f"3 images were withheld by the safety checker of {tmp_path / 'images'}.",)
    with pytest.raises(BadInput, match="holds no image"):
        sources.read(tmp_path / "out")


def test_weights_that_are_cut_are_one_sentence(tiny_models: Any, tmp_path: Path) -> None:
    for model, weights in (("prompts", "model.safetensors"), ("images", "vae/diffusion_pytorch_model.safetensors")):
        folder = shutil.copytree(getattr(tiny_models, model), tmp_path / model)
        os.truncate(folder / weights, 5000)
        with pytest.raises(BadInput, match=f"{model} cannot be loaded as a text-to-"):
            generate.run(config_of(tiny_models, tmp_path / "out", **{f"{model.removesuffix('s')}_model": str(folder)}))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('{"class": "disc", "prompt": "a"}\nnothing\n', r'line 2 is not \{"class"'),
        ('{"class": "disc", "prompt": " "}\n', r'line 1 is not \{"class"'),
        ('{"class": "disc", "prompt": "a"}\n', r"has no prompt for the class 'cross'"),
        ('{"class": "disc", "prompt": "a", "prompt_seed": 7}\n', r"was written with prompt_seed = 7, not 0"),
    ],
)
def test_bad_prompts_are_one_sentence(tmp_path: Path, lines: str, sentence: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(lines)
    with pytest.raises((BadInput, Incompatible), match=sentence):
        generate.run(GenerateConfig(classes=("cross", "disc"), per_class=1, out=tmp_path))


@pytest.mark.parametrize("module", ["transformers", "diffusers"])
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # Python then answers an import as if nothing were installed
    if module == "diffusers":
        (tmp_path / "prompts.jsonl").write_text('{"class": "disc", "prompt": "a disc"}\n')
    with pytest.raises(BadInput, match=rf"needs {module}\. Install it: pip install 'curate-images\[generate\]'"):
        generate.run(GenerateConfig(classes=("disc",), per_class=1, out=tmp_path, device="cpu"))


def test_a_folder_in_other_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match=r"holds thesis\.tex, which no generation wrote"):
        generate.run(GenerateConfig(classes=("cross", "disc"), per_class=1, out=tmp_path))
    (tmp_path / "thesis.tex").rename(tmp_path / "00000.tar")  # a crawl's
    with pytest.raises(BadInput, match=r"00000\.tar is there without the run\.json of a generation"):
        generate.run(GenerateConfig(classes=("cross", "disc"), per_class=1, out=tmp_path))
    assert (tmp_path / "00000.tar").read_text() == "precious"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Incompatible, match=f"process {os.getpid()} .* is writing into it"):
            generate.run(GenerateConfig(classes=("cross", "disc"), per_class=1, out=tmp_path))
    finally:
        os.close(descriptor)


def test_classes_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    assert generate_stage.read_classes("bird, airplane") == ("bird", "airplane")
    (tmp_path / "classes.txt").write_text("bird\n\nmaple tree \n")
    assert generate_stage.read_classes(str(tmp_path / "classes.txt")) == ("bird", "maple tree")
    with pytest.raises(BadInput, match=r"nowhere\.txt cannot be read"):
        generate_stage.read_classes(str(tmp_path / "nowhere.txt"))
