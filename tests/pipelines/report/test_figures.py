import numpy as np
import pytest

from pipelines.report.maps import project


def test_the_plain_map_is_that_of_a_singular_value_decomposition() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32) * np.arange(8, 0, -1, dtype=np.float32)
    points, how = project(vectors, "pca")
    centered = vectors - vectors.mean(0)
    _, lengths, directions = np.linalg.svd(centered, full_matrices=False)
    expected = centered @ directions[:2].T
    assert np.allclose(np.abs(points), np.abs(expected), atol=1e-3)
    assert f"{(lengths[:2] ** 2).sum() / (lengths**2).sum():.0%}" in how


def test_t_sne_keeps_groups_apart() -> None:
    pytest.importorskip("openTSNE", reason="openTSNE is not installed: pip install -e '.[viz]'")
    rng = np.random.default_rng(0)
    group = np.arange(90) % 3
    vectors = (10 * np.eye(3, 6)[group] + rng.normal(size=(90, 6))).astype(np.float32)
    points, how = project(vectors, "tsne")
    centers = np.stack([points[group == k].mean(0) for k in range(3)])
    nearest = np.linalg.norm(points[:, None] - centers[None], axis=2).argmin(1)
    assert (nearest == group).mean() > 0.95 and "t-SNE" in how
