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


def drawn(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of kinds of so many images each, and the kind of each image."""
    rng, kind = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    centers = np.eye(len(sizes) + 4, dtype=np.float32)[: len(sizes)]
    return centers[kind] + rng.normal(0, 0.01, (len(kind), len(sizes) + 4)).astype(np.float32), kind


def to_label(embeddings: np.ndarray, doubt: np.ndarray | None = None, **options: np.ndarray) -> np.ndarray:
    count = len(embeddings)
    given = {"may_N": np.ones(count, bool), "labeled_LD": np.empty((0, 1), np.float32)} | options
    doubt = np.full(count, 0.2, np.float32) if doubt is None else doubt
    found = order.to_label(doubt, shards=lambda: [embeddings[:100], embeddings[100:]], **given)
    assert sorted(found.tolist()) == list(range(count))
    return found


def test_images_to_label_come_from_all_kinds_first_the_largest() -> None:
    embeddings, kind = drawn([30, 60, 50, 40])
    assert kind[to_label(embeddings)[:4]].tolist() == [1, 2, 3, 0]


def test_what_labeled_images_cover_comes_later() -> None:
    embeddings, kind = drawn([30, 60, 50, 40])
    found = to_label(embeddings, labeled_LD=embeddings[kind == 1][:1])
    assert kind[found[:3]].tolist() == [2, 3, 0]


def test_doubtful_images_are_covered_first_and_what_may_not_be_labeled_comes_last() -> None:
    embeddings, kind = drawn([40, 50, 45, 42])
    doubt = np.where(kind == 0, np.float32(1), np.float32(0))
    assert kind[to_label(embeddings, doubt)[0]] == 0
    may = kind != 0
    assert set(kind[to_label(embeddings, doubt, may_N=may)[-40:]].tolist()) == {0}
    assert len(to_label(embeddings, may_N=np.zeros(len(kind), bool))) == len(kind)


def test_the_order_of_labels_is_the_greedy_one() -> None:
    rng = np.random.default_rng(1)
    embeddings, doubt = rng.normal(size=(160, 5)).astype(np.float32), rng.random(160).astype(np.float32)
    unit = embeddings - embeddings.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similar, cover, expected = (unit @ unit.T).clip(0), np.zeros(160, np.float32), []
    for _ in range(20):
        gains = (np.maximum(similar - cover[:, None], 0) * (0.5 + doubt)[:, None]).sum(0)
        expected.append(int(gains.argmax()))
        cover = np.maximum(cover, similar[:, expected[-1]])
    assert to_label(embeddings, doubt)[:20].tolist() == expected
