"""Networks by name, ours and timm's: what they take, what comes out, and the weights that they start from."""

import pytest
import timm
import torch

from models.backbones import IMAGENET_MEAN, IMAGENET_STD, Standardize, backbone, inputs, load_weights

# A family each: how it is built for a size, whether its norms are batch norms, where its width stands, all differ.
FAMILIES = [
    "test_vit", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "test_convnext", "test_efficientnet",
    "tf_efficientnet_lite0", "mobilenetv3_small_100", "mobilenetv4_conv_small", "maxvit_nano_rw_256", "levit_128s",
    "mixer_s32_224", "vit_small_patch14_reg4_dinov2", "vit_pe_core_tiny_patch16_384.fb", "ghostnet_100", "resnet10t",
]  # fmt: skip
WIDTHS = {"mobilenetv3_small_100": 1024, "mobilenetv4_conv_small": 1280, "ghostnet_100": 1280}  # of their heads


def test_wrn_28_2_has_the_size_of_the_literature() -> None:
    network, width = backbone("wrn-28-2")
    assert width == 128
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert num_parameters + 128 * 10 + 10 == 1_467_610  # FixMatch's WRN-28-2 with 10 classes


@pytest.mark.parametrize("name", ["wrn-28-2", "small", "timm:resnet10t"])
def test_features_have_the_width_that_is_said(name: str) -> None:
    network, width = backbone(name)
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, width)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_timm_network_is_built_for_any_size_with_its_measured_width(name: str) -> None:
    size = 112 if name != "maxvit_nano_rw_256" else 128
    network, width = backbone(f"timm:{name}", size)
    with torch.no_grad():
        assert network.eval()(torch.zeros(2, 3, size, size)).shape == (2, width)
    assert width == WIDTHS.get(name, network.num_features)


@pytest.mark.parametrize("name", ["resnet50", "timm:no_such_network", "timm:hf-hub:someone/net", "timm:local-dir:/tmp"])
def test_unknown_backbone_is_a_value_error(name: str) -> None:
    for build in (backbone, inputs):
        with pytest.raises(ValueError, match=r"[Uu]nknown"):
            build(name)


def test_an_unknown_tag_of_weights_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Invalid pretrained tag"):
        backbone("timm:resnet18.no_such_tag")


def test_a_size_that_a_network_does_not_take_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"takes no images of 96 pixels \(.*\); its own size is 224"):
        backbone("timm:efficientformer_l1", 96)


def test_each_network_has_inputs_of_its_own() -> None:
    assert inputs("small") == inputs("wrn-28-2") == (32, IMAGENET_MEAN, IMAGENET_STD)
    assert inputs("timm:resnet18") == (224, IMAGENET_MEAN, IMAGENET_STD)
    assert inputs("timm:tf_efficientnet_lite0") == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert inputs("timm:vit_pe_core_tiny_patch16_384.fb").size == 384
    mean = inputs("timm:vit_base_patch16_clip_224.openai").mean
    assert mean != inputs("timm:vit_base_patch16_224.augreg_in1k").mean  # weights of one network, of two trainings
    assert inputs("timm:mobilevit_xxs")[1:] == ((0, 0, 0), (1, 1, 1))


def test_levels_are_standardized_by_mean_and_deviation_of_levels_in_0_to_1() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    standardized = Standardize((0.5, 0.25, 0.0), (0.5, 0.1, 2.0))(levels).flatten()
    torch.testing.assert_close(standardized, torch.tensor([-1.0, -0.5, 0.5]))


@pytest.mark.parametrize("name", ["small", "timm:test_efficientnet", "timm:test_vit", "timm:test_convnext"])
def test_weights_are_loaded_by_name_and_others_are_ignored(name: str) -> None:
    torch.manual_seed(0)
    given, _ = backbone(name, 64)
    network, _ = backbone(name, 64)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(network.eval()(image), given.eval()(image))
        load_weights(network, given.state_dict() | {"classifier.weight": torch.ones(7)})
        assert torch.equal(network(image), given(image))


def test_position_embeddings_are_resized_as_timm_resizes_them() -> None:
    """Ours is built at 96 pixels and loads weights of 224; timm's is given the same by its own way."""
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    weights = timm.create_model(name).state_dict()
    overlay = {"state_dict": dict(weights)}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=96)
    ours, _ = backbone(f"timm:{name}", 96)
    load_weights(ours, weights)
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))


def test_weights_that_lack_a_tensor_or_have_another_shape_are_named() -> None:
    network, _ = backbone("timm:resnet10t")
    weights = network.state_dict()
    with pytest.raises(ValueError, match=r"lacks 'conv1.0.weight' \(1 of \d+ tensors missing\)"):
        load_weights(network, {name: tensor for name, tensor in weights.items() if name != "conv1.0.weight"})
    with pytest.raises(ValueError, match=r"has 'conv1.0.weight' of shape \(3,\), not \(24, 3, 3, 3\)"):
        load_weights(network, weights | {"conv1.0.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="lacks"):
        load_weights(backbone("timm:test_vit")[0], weights)
