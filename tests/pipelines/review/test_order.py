"""The order of looking: doubt first, look-alikes in turns."""

import numpy as np
import pytest

from pipelines.review import order


def test_uncertainty_is_highest_at_the_threshold_and_falls_to_both_sides() -> None:
    prob = np.array([0.0, 0.05, 0.2, 0.5, 0.9, 1.0], dtype=np.float32)
    at_half, at_fifth = order.uncertainty(prob, 0.5), order.uncertainty(prob, 0.2)
    assert at_half.tolist() == pytest.approx([0, 0.19, 0.64, 1, 0.36, 0], abs=1e-4)
    assert at_fifth.argmax() == 2 and at_fifth[2] == pytest.approx(1)
    assert [at_fifth[0], at_fifth[-1]] == pytest.approx([0, 0], abs=1e-6)


def test_look_alikes_take_turns_and_the_most_doubtful_of_each_comes_first() -> None:
    doubt = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], dtype=np.float32)
    groups = np.array([7, 7, 7, 3, 3, 5])
    assert order.order(doubt, groups).tolist() == [0, 3, 5, 1, 4, 2]


def test_no_turn_brings_what_is_certain_before_what_is_in_doubt() -> None:
    """A group in which nothing is in doubt waits for its tier, however many groups there are."""
    rng = np.random.default_rng(0)
    doubt = np.concatenate([np.full(300, 0.9), np.full(5000, 0.1)]).astype(np.float32)
    groups = np.concatenate([rng.integers(0, 5, 300), rng.integers(5, 900, 5000)])
    ranked = order.order(doubt, groups)
    assert sorted(ranked.tolist()) == list(range(5300))
    assert set(ranked[:250].tolist()) <= set(range(300))
    assert len(set(groups[ranked[:5]].tolist())) == 5


def test_clusters_gather_what_points_the_same_way() -> None:
    rng = np.random.default_rng(0)
    directions = np.eye(4, 8)
    truth = rng.integers(0, 4, 400)
    vectors = (directions[truth] * rng.uniform(1, 9, (400, 1)) + 0.01 * rng.standard_normal((400, 8))).astype(
        np.float16
    )
    found = order.clusters(lambda: (vectors[:150], vectors[150:150], vectors[150:]), len(vectors))
    assert found.shape == (400,)
    for cluster in np.unique(found):
        assert len(np.unique(truth[found == cluster])) == 1


def test_images_to_label_come_from_all_clusters_first_the_most_doubtful_typical_one() -> None:
    rng = np.random.default_rng(0)
    centers = np.eye(8, dtype=np.float32)[:4]
    kind = np.repeat(np.arange(4), 40)
    embeddings = centers[kind] + rng.normal(0, 0.01, (160, 8)).astype(np.float32)
    probs = np.tile(np.array([0.9, 0.1], np.float16), (160, 1))
    probs[[3, 50, 90, 130]] = 0.5
    doubt = order.margin_doubt(probs)
    assert doubt[3] == 1 and doubt[0] == pytest.approx(0.2, abs=1e-3)
    found = order.to_label(doubt, lambda: [embeddings[:100], embeddings[100:]])
    assert sorted(found.tolist()) == list(range(160))
    assert {3, 50, 90, 130} <= set(found[:8].tolist())  # k-means may cut a kind in two
