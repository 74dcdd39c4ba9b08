"""Pretrained weights from files, from the installed package and from a hub, which is a real server on this machine."""

import io
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from pipelines.errors import BadInput
from pipelines.run import weights

PHOTOS = Path(__file__).parents[4] / "shared/data/photos-224.parquet"
IMAGENET = {"golf ball": 574, "parachute": 701, "church": 497, "gas pump": 571, "garbage truck": 569, "tench": 0}
TENSORS = {"conv.weight": torch.arange(4.0), "conv.bias": torch.zeros(2)}


@pytest.fixture
def embedded() -> dict[str, Tensor]:
    found = weights.embedded_weights(weights.EMBEDDED)
    if found is None:
        pytest.skip(f"the package {weights.PACKAGE} is not installed")
    return found


@pytest.mark.slow
def test_the_embedded_weights_classify_photographs(embedded: dict[str, Tensor]) -> None:
    if not PHOTOS.exists():
        pytest.skip("needs the photographs of ../shared/data")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(embedded, strict=False)
    table = pq.read_table(PHOTOS, columns=["jpg", "class_name"]).to_pylist()
    chosen = [row for name in IMAGENET for row in [each for each in table if each["class_name"] == name][:4]]
    pixels = torch.stack([pil_to_tensor(Image.open(io.BytesIO(row["jpg"])).convert("RGB")) for row in chosen])
    with torch.no_grad():
        called = network((pixels.float() / 255 - 0.5) / 0.5).argmax(1).tolist()
    right = [IMAGENET[row["class_name"]] == label for row, label in zip(chosen, called, strict=True)]
    assert sum(right) >= 0.7 * len(right)


def test_the_package_holds_the_weights_of_one_network(embedded: dict[str, Tensor]) -> None:
    names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    assert embedded.keys() == {name for name in names if "num_batches" not in name}
    assert weights.embedded_weights("timm:tf_efficientnet_lite0.in1k") is not None
    assert weights.embedded_weights("timm:tf_efficientnet_lite1") is None
    assert weights.embedded_weights("small") is None


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_weights_are_read_from_files_of_all_kinds(tmp_path: Path, suffix: str, prefix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    named = {prefix + name: tensor for name, tensor in TENSORS.items()}
    save_file(named, path) if suffix == ".safetensors" else torch.save(named, path)
    read = weights.read(path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("outer", [["state_dict"], ["model"], ["teacher"], ["model", "state_dict"], ["model_ema"]])
def test_weights_are_found_in_a_checkpoint(tmp_path: Path, outer: list[str]) -> None:
    content: Any = {"backbone." + name: tensor for name, tensor in TENSORS.items()} | {"head.weight": torch.ones(3)}
    for key in reversed(outer):
        content = {"epoch": 7, key: content, "arch": "resnet"}
    torch.save(content, tmp_path / "checkpoint.pth")
    assert weights.read(tmp_path / "checkpoint.pth").keys() == TENSORS.keys()


class Harm:
    """Pickled code, as a file of weights from a stranger may hold it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Harm(tmp_path / "harmed")}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harm(tmp_path / "harmed")))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(BadInput, match=rf"{name} is not a readable PyTorch file of tensors alone") as caught:
            weights.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04" + bytes(64), bytes(8), b"\x80\x02}q"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"--weights .* is not a readable") as caught:
        weights.read(path)
    assert "\n" not in str(caught.value)


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(BadInput, match="holds a Tensor, not weights by name"):
        weights.read(tmp_path / "tensor.pt")
    with pytest.raises(BadInput, match="holds no tensors"):
        weights.read(tmp_path / "numbers.pt")
    with pytest.raises(BadInput, match=r"cannot be read \(.*[Nn]o such file"):
        weights.read(tmp_path / "missing.pt")
    with pytest.raises(BadInput, match=r"missing.safetensors cannot be read"):
        weights.read(tmp_path / "missing.safetensors")


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: a commit and an etag with each file."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (the server's own)

    def do_HEAD(self) -> None:
        content = self.files.get(self.path)
        self.send_response(404 if content is None and self.path != "/" else 200)
        self.send_header("X-Repo-Commit", "c0ffee" + "0" * 34)
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.files.get(self.path, b""))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_hub_that_answers_is_reachable(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address(hub))
    assert weights.hub_reachable()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address(hub) + "/nowhere")  # 404 is an answer, too
    assert weights.hub_reachable()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not weights.hub_reachable()


def test_a_hub_that_is_silent_or_not_there_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        port = silent.getsockname()[1]
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        assert not weights.hub_reachable(0.3)
        assert time.monotonic() - started < 2
    assert not weights.hub_reachable(0.3)  # closed by now
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "nonsense")
    assert not weights.hub_reachable(0.3)


FETCH = """
from pipelines.run import weights
print(len(weights.pretrained("timm:test_resnet")))
"""


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for weights in this cache of the hub, and nowhere else."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))


@pytest.mark.slow
def test_weights_come_from_the_hub_and_then_from_its_cache(
    hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = timm.create_model("test_resnet").state_dict()
    save_file(given, tmp_path / "given.safetensors")
    file = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    Hub.files = {file: (tmp_path / "given.safetensors").read_bytes()}
    # In a process of its own, because the hub's library reads its settings at the import.
    settings = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": address(hub)}
    command = [sys.executable, "-c", FETCH]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(len(given)), done.stderr
    use_cache(tmp_path / "cache", monkeypatch)
    cached = weights.pretrained("timm:test_resnet")
    assert all(torch.equal(cached[name], given[name]) for name in given)


def test_without_hub_and_cache_a_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    with pytest.raises(BadInput, match=r"of timm:test_resnet cannot be downloaded \(no hub can be reached\)") as caught:
        weights.pretrained("timm:test_resnet")
    for way in ("--weights FILE", f"--backbone {weights.EMBEDDED}", "without --pretrained"):
        assert way in str(caught.value)


def test_networks_without_published_weights_are_one_sentence() -> None:
    for name in ("small", "timm:mixer_s32_224"):
        with pytest.raises(BadInput, match=f"{name} has no published weights"):
            weights.pretrained(name)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_prefers_the_networks_of_the_hub_where_it_can_be_reached(device: str) -> None:
    choice = weights.choose_backbone(device, True)
    assert choice.source in ("hub", "cache")
    preferred = [name for name, _ in weights.PREFERRED["cpu" if device == "cpu" else "gpu"]]
    assert choice.backbone == preferred[0]
    assert choice.reason.startswith(f"Backbone {choice.backbone} at 224 px: ") and choice.reason.endswith(".")


@pytest.mark.parametrize("name", [name for names in weights.PREFERRED.values() for name, _ in names])
def test_the_preferred_networks_are_published_under_free_licenses(name: str) -> None:
    config = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    assert config is not None and config.hf_hub_id
    assert config.license in ("apache-2.0", "mit")


def test_auto_takes_the_installed_network_where_no_hub_can_be_reached(
    embedded: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(tmp_path, monkeypatch)
    choice = weights.choose_backbone("cpu", False)
    assert (choice.backbone, choice.image_size, choice.source) == (weights.EMBEDDED, 224, "package")
    assert "no hub can be reached" in choice.reason
