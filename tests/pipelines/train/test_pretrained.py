"""RSMatch on networks of timm, end to end: any kind, at its own input size, from pretrained weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines import train
from pipelines.errors import BadInput
from pipelines.run import model, weights
from tests.conftest import World
from tests.pipelines.train.runs import config, metrics

STEPS: dict[str, Any] = {"num_steps": 2, "batch_size": 2, "unlabeled_ratio": 1, "warmup": 0.0}


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_vit", 32), ("test_convnext", 64), ("test_efficientnet", 64), ("mobilenetv3_small_050", 64)],
)
def test_networks_of_each_kind_are_trained_and_score(world: World, tmp_path: Path, name: str, size: int) -> None:
    network = {"backbone": f"timm:{name}", "image_size": size}
    train.run(config(world, tmp_path / "run", network=network, recipe=STEPS))
    assert all(line["sup_real"] < 20 for line in metrics(tmp_path / "run"))
    classifier = model.load(tmp_path / "run", torch.device("cpu")).classifier
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert classifier.embed(images).shape == (2, classifier.num_features)
    assert not classifier.is_pretrained


def test_an_unset_image_size_is_the_networks_own_and_installed_weights_start_it(world: World, tmp_path: Path) -> None:
    installed = weights.embedded_weights(weights.EMBEDDED)
    if installed is None:
        pytest.skip("the package with the weights is not installed")
    settings = config(
        world, tmp_path / "run",
        network={"backbone": weights.EMBEDDED, "pretrained": True},
        recipe={**STEPS, "method": "supervised", "learning_rate": 1e-9, "num_steps": 1},
    )  # fmt: skip
    train.run(settings)
    trained = model.load(tmp_path / "run", torch.device("cpu"))
    assert (trained.config.image_size, trained.config.mean, trained.config.is_pretrained) == (224, (0.5,) * 3, True)
    saved = load_file(tmp_path / "run" / "model" / "classifier.safetensors")
    torch.testing.assert_close(saved["backbone.conv_head.weight"], installed["conv_head.weight"])


def test_a_size_that_the_network_does_not_take_is_one_sentence(world: World, tmp_path: Path) -> None:
    network = {"backbone": "timm:efficientformer_l1", "image_size": 96}
    with pytest.raises(BadInput, match=r"--backbone timm:efficientformer_l1: .* its own size is 224\. Use") as caught:
        train.run(config(world, tmp_path / "run", network=network, recipe=STEPS))
    assert "\n" not in str(caught.value)
