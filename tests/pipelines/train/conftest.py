from pathlib import Path

import pytest

from pipelines import train
from tests.conftest import World
from tests.pipelines.train.runs import config


@pytest.fixture(scope="session")
def uninterrupted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a training from its first step to its last."""
    run = tmp_path_factory.mktemp("uninterrupted")
    train.run(config(world, run, validation=world.test, truth=world.truth))
    return run
