"""Features of a frozen network against a forward pass written by hand, and what they must not depend on."""

import pytest
import timm
import torch
from torch import Tensor

from models.backbones import backbone
from models.frozen import Frozen

LITE = "timm:tf_efficientnet_lite0"


def images(count: int, size: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=rng, dtype=torch.uint8)


def random_network(name: str, **settings: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name.removeprefix("timm:"), **settings).eval()


def statistics(map_BCHW: Tensor) -> Tensor:
    positions = map_BCHW.flatten(2)
    return torch.cat((positions.mean(2), (positions - positions.mean(2, keepdim=True)).square().mean(2).sqrt()), 1)


def test_features_of_efficientnet_are_those_of_its_blocks_1_to_4_and_of_its_last_layer() -> None:
    network = random_network(LITE)
    frozen = Frozen(LITE, network.state_dict(), 96)
    batch = images(3, 96)
    with torch.no_grad():
        maps, x = [], network.bn1(network.conv_stem((batch.float() / 255 - 0.5) / 0.5))
        for i, block in enumerate(network.blocks):
            x = block(x)
            if i in (1, 2, 3, 4):
                maps.append(x)
        pooled = network.bn2(network.conv_head(x)).mean((2, 3))
    assert [each.shape[1] for each in maps] == [24, 40, 80, 112]
    features = frozen(batch)
    torch.testing.assert_close(features.low, torch.cat([statistics(each) for each in maps], 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-4, atol=1e-5)
    assert (frozen.num_low, frozen.num_pooled) == (512, 1280)
    assert torch.equal(features.everything[:, :512], features.low)
    assert torch.equal(features.everything[:, 512:], features.pooled)


def test_features_of_a_transformer_are_those_of_patch_tokens_on_the_way_and_of_its_head() -> None:
    network = random_network("vit_tiny_patch16_224", img_size=64)
    frozen = Frozen("timm:vit_tiny_patch16_224", network.state_dict(), 64)
    batch = images(2, 64)
    with torch.no_grad():
        tokens = network._pos_embed(network.patch_embed((batch.float() / 255 - 0.5) / 0.5))
        expected = []
        for i, block in enumerate(network.blocks):
            tokens = block(tokens)
            if i + 1 in (3, 6, 9):  # of 12
                expected.append(statistics(tokens[:, 1:].mT))
        pooled = network.norm(tokens)[:, 0]
    features = frozen(batch)
    torch.testing.assert_close(features.low, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        (LITE, 96), ("timm:vit_pe_core_tiny_patch16_384.fb", 96), ("timm:swin_tiny_patch4_window7_224", 96),
        ("timm:convnext_atto", 96), ("timm:mobilenetv4_conv_small", 96), ("timm:levit_128s", 224),
        ("timm:vit_small_patch14_reg4_dinov2", 98), ("timm:mixer_s32_224", 224), ("timm:maxvit_nano_rw_256", 128),
    ],
)  # fmt: skip
def test_an_image_has_the_same_features_alone_and_in_a_batch(name: str, size: int) -> None:
    network = random_network(name)
    frozen, batch = Frozen(name, network.state_dict(), size), images(4, size)
    together, again = frozen(batch), frozen(batch.float())
    for i in range(4):
        alone = frozen(batch[i : i + 1])
        torch.testing.assert_close(alone.low[0], together.low[i], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(alone.pooled[0], together.pooled[i], rtol=1e-3, atol=1e-4)
    assert torch.equal(again.low, together.low) and torch.equal(again.pooled, together.pooled)
    assert torch.equal(frozen.low(batch), together.low)
    assert together.low.shape == (4, frozen.num_low) and together.pooled.shape == (4, frozen.num_pooled)
    assert not torch.allclose(together.low[0], together.low[1])


def test_reduced_precision_gives_the_same_features_to_its_rounding() -> None:
    weights = random_network(LITE).state_dict()
    batch = images(4, 96)
    full = Frozen(LITE, weights, 96)(batch)
    half = Frozen(LITE, weights, 96, torch.autocast("cpu", torch.bfloat16))(batch)
    assert half.low.dtype == half.pooled.dtype == torch.float32
    assert 0 < (half.low - full.low).norm() < 0.02 * full.low.norm()


def test_the_network_stays_as_it_is() -> None:
    network = random_network("timm:test_efficientnet")
    frozen, batch = Frozen("timm:test_efficientnet", network.state_dict()), images(2, 160)
    before = frozen(batch)
    frozen.train()
    after = frozen(batch)
    assert torch.equal(before.low, after.low) and torch.equal(before.pooled, after.pooled)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_digest_names_the_precision() -> None:
    name = "timm:test_resnet"
    tensors = backbone(name)[0].state_dict()
    full, half = Frozen(name, tensors), Frozen(name, tensors, autocast=torch.autocast("cpu", torch.bfloat16))
    assert (full.precision, half.precision) == ("fp32", "bf16")
    assert full.digest != half.digest


def test_the_digest_names_network_size_and_weights() -> None:
    weights = random_network("timm:test_efficientnet").state_dict()
    digest = Frozen("timm:test_efficientnet", weights).digest
    assert digest == Frozen("timm:test_efficientnet", dict(weights), 160).digest  # its own size
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    changed["conv_stem.weight"][0, 0, 0, 0] += 1e-3
    others = {Frozen("timm:test_efficientnet", changed).digest, Frozen("timm:test_efficientnet", weights, 96).digest}
    assert len(others | {digest}) == 3
    assert len(digest) == 16 and set(digest) <= set("0123456789abcdef")


def test_networks_that_cannot_be_read_are_one_sentence() -> None:
    weights = random_network("timm:test_efficientnet").state_dict()
    with pytest.raises(ValueError, match="lacks"):
        Frozen("timm:test_resnet", weights)
    with pytest.raises(ValueError, match="gives no intermediate maps"):
        Frozen("small", backbone("small")[0].state_dict())
