import tomllib
from pathlib import Path

import pytest

from pipelines import train
from pipelines.errors import CorruptShard
from pipelines.report.history import read_record, toml


@pytest.mark.parametrize(
    "name", ["plain", 'a "quoted" \\ name', "tab\tand\nline", "ünï", "<img src=x onerror=alert(1)>"]
)
def test_a_configuration_survives_toml(name: str) -> None:
    config = train.TrainConfig.model_validate(
        {
            "labeled": name,
            "recipe": {"weight_decay": 1e-5, "queue_classes": 3},
            "network": {"pretrained": True, "init_from": name},
        }
    )
    assert train.TrainConfig(**tomllib.loads(toml(config.model_dump(mode="json")))) == config


def test_a_record_that_is_missing_is_empty_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_record(tmp_path / "run.json") == {}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CorruptShard, match=r"run\.json is not JSON"):
        read_record(tmp_path / "run.json")
