import pytest
import torch
from torch import nn

from models.classifier import Classifier


@pytest.mark.parametrize("name", ["wrn-28-2", "small", "timm:resnet10t"])
def test_classifier_takes_uint8_and_gives_both_heads(name: str) -> None:
    classifier = Classifier(name, 7).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    heads = classifier(images)
    assert heads.real.shape == heads.dummy.shape == (3, 7)
    assert heads.real.dtype == torch.float32
    assert classifier.embed(images).shape == (3, classifier.num_features)


@pytest.mark.parametrize("name", ["small", "timm:test_efficientnet", "timm:levit_128s"])
def test_all_batch_norms_get_the_momentum(name: str) -> None:
    classifier = Classifier(name, 2)
    classifier.set_norm_momentum(0.001)
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms and {norm.momentum for norm in norms} == {0.001}


def test_a_network_sees_images_as_it_was_trained_to() -> None:
    """Levels of 0..1 less 0.5, over 0.5, by a forward pass written by hand; other networks have ImageNet's."""
    classifier = Classifier("timm:test_vit", 3, 64).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(classifier.embed(images), classifier.backbone(images.float() / 127.5 - 1))
