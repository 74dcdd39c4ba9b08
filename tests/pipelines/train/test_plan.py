"""What a training does where its settings leave it open."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import ingest
from pipelines.errors import BadInput
from pipelines.pool.manifest import Pool
from pipelines.run import weights
from pipelines.train import TrainConfig, plan
from pipelines.train.plan import Plan
from tests import photographs
from tests.conftest import World

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
LITE = "timm:tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    photographs.write(root / "crawl", range(5), synthetic=False)
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    return root / "pool"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "hub_reachable", lambda: False)  # the network is no part of these tests


def make(pool: Path, **network: Any) -> Plan:
    config = TrainConfig(labeled=Path("seed"), pool=pool, network=network, machine={"device": "cpu"})
    return plan.make(config, Pool.open(pool), CPU)


def test_small_images_are_trained_from_scratch_with_a_network_as_the_detector(world: World) -> None:
    made = make(world.pool)
    network = made.config.network
    assert (network.backbone, network.detector, network.frozen, network.pretrained) == (
        "wrn-28-2", "network", False, False,
    )  # fmt: skip
    assert (made.sentence, made.reader, network.image_size) == (None, None, 32)
    assert plan.recipe_of(TrainConfig(labeled=Path("seed"), pool=world.pool, machine={"device": "cpu"})) == "cpu"


def test_large_images_get_a_pretrained_backbone_and_a_panel(large: Path) -> None:
    made = make(large, image_size=64)
    network = made.config.network
    assert (network.backbone, network.detector, network.frozen, network.pretrained) == (LITE, "panel", True, True)
    assert made.reader is not None and made.reader.frozen.size == 64 and made.reader.num_views == network.views
    width, height = plan.typical_size(Pool.open(large))
    assert made.sentence is not None and f"{width}x{height}" in made.sentence and "frozen, 64 px" in made.sentence
    assert min(width, height) > 150
    assert plan.recipe_of(TrainConfig(labeled=Path("seed"), pool=large)) == "photographs"


def test_a_trained_backbone_is_read_for_the_panel_alone(large: Path) -> None:
    made = make(large, image_size=64, frozen=False)
    assert made.reader is not None and made.reader.num_views == 0
    assert made.sentence is not None and "trained end to end" in made.sentence


def test_what_is_given_is_taken(large: Path, world: World) -> None:
    assert make(large, backbone="small").config.network.detector == "network"
    assert make(large, detector="network").config.network.backbone == "wrn-28-2"
    for asked in ({"detector": "panel"}, {"frozen": True}):
        made = make(world.pool, image_size=64, **asked)
        assert (made.config.network.backbone, made.config.network.detector) == (LITE, "panel")


def test_a_plan_leaves_nothing_open_and_planning_it_again_changes_nothing(large: Path) -> None:
    made = make(large, image_size=64)
    again = plan.make(made.config, Pool.open(large), CPU)
    assert again.config == made.config
    assert again.reader is not None and made.reader is not None and again.reader.digest == made.reader.digest


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ({"backbone": "small", "detector": "panel"}, "--detector panel: small has no pretrained weights"),
        ({"backbone": "small", "frozen": True}, "--frozen: features of a frozen backbone are read for a panel alone"),
        ({"detector": "network", "frozen": True}, "--frozen: features of a frozen backbone are read for a panel alone"),
        ({"init_from": Path("run"), "weights": Path("w.pth")}, "--init-from already gives the backbone its weights"),
        ({"backbone": "timm:no_such_network"}, "--backbone timm:no_such_network"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(large: Path, network: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as refused:
        make(large, **network)
    assert "\n" not in str(refused.value)
