from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmark import BenchmarkConfig


@pytest.mark.parametrize("spec", ["odd", "imbalanced:0", "imbalanced:2", "balanced:x"])
def test_a_contamination_that_is_none_is_refused(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, contaminations=(spec,))


@pytest.mark.parametrize("part", ["start", "train"])
def test_a_setting_of_training_that_is_none_is_refused(part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_step: Extra inputs are not permitted"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, **{part: {"recipe": {"num_step": 5}}})


@pytest.mark.parametrize("odd", [{"alphas": (-1.0,)}, {"labels": (0,)}, {"num_real": (0,)}, {"learning_rates": (0.0,)}])
def test_a_matrix_that_cannot_be_is_refused(odd: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="greater than"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, **odd)


def test_a_clean_pool_is_nothing_for_nnpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nnPU can learn nothing from a clean pool"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, methods=("rsmatch-nnpu",), alphas=(0.5, 0))


def test_a_learning_rate_among_the_settings_of_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Give it as learning_rates"):
        BenchmarkConfig(real=tmp_path, synthetic=tmp_path, test=tmp_path, train={"recipe": {"learning_rate": 0.1}})
