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


def test_all_batch_norms_get_the_momentum() -> None:
    classifier = Classifier("small", 2)
    classifier.set_norm_momentum(0.001)
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and {norm.momentum for norm in norms} == {0.001}
