import pytest
import torch

from models.backbones import backbone


def test_wrn_28_2_has_the_size_of_the_literature() -> None:
    network, width = backbone("wrn-28-2")
    assert width == 128
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert num_parameters + 128 * 10 + 10 == 1_467_610  # FixMatch's WRN-28-2 with 10 classes


@pytest.mark.parametrize("name", ["wrn-28-2", "small", "timm:resnet10t"])
def test_features_have_the_width_that_is_said(name: str) -> None:
    network, width = backbone(name)
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, width)


@pytest.mark.parametrize("name", ["resnet50", "timm:no_such_network"])
def test_unknown_backbone_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"[Uu]nknown"):
        backbone(name)
