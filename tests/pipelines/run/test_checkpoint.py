from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.errors import CorruptShard
from pipelines.run import checkpoint

CPU = torch.device("cpu")


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    built = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    return built, torch.optim.SGD(built.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)


def descend(built: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    built(images).square().mean().backward()
    optimizer.step()


def test_an_optimizer_goes_on_to_the_bit_though_memory_is_channels_last(tmp_path: Path) -> None:
    straight, straight_optimizer = network()
    for seed in range(4):
        descend(straight, straight_optimizer, seed)
    first, first_optimizer = network()
    for seed in range(2):
        descend(first, first_optimizer, seed)
    tensors = checkpoint.pack("network", first) | checkpoint.pack("optimizer", first_optimizer)
    checkpoint.save(tmp_path / "state", tensors, {"step": 2})
    loaded, state = checkpoint.load(tmp_path / "state", CPU)
    second, second_optimizer = network()
    checkpoint.unpack("network", loaded, second)
    checkpoint.unpack("optimizer", loaded, second_optimizer)
    for seed in range(2, 4):
        descend(second, second_optimizer, seed)
    assert state == {"step": 2}
    for ours, theirs in zip(second.state_dict().values(), straight.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("content", [b"", b"\x80\x04a pickle", b"\xff" * 100])
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(CorruptShard, match="Remove it to train from the start"):
        checkpoint.load(tmp_path / "state", CPU)


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "state", {"a": torch.ones(2)}, {"step": 1})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "state", {"a": torch.zeros(2)}, {"step": object()})
    tensors, state = checkpoint.load(tmp_path / "state", CPU)
    assert tensors["a"].tolist() == [1, 1]
    assert state == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_a_kill_left_of_a_save_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / ".tmpa1B2c3").write_bytes(b"half")  # as safetensors calls it
    checkpoint.save(tmp_path / "state", {"a": torch.ones(2)}, {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
