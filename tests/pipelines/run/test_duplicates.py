"""Pairs of near hashes, against comparing all with all."""

from itertools import combinations

import numpy as np
import pytest

from pipelines.run.duplicates import block_masks, joined, near_pairs


def by_all_pairs(hashes: list[int], radius: int) -> np.ndarray:
    pairs = [(i, j) for i, j in combinations(range(len(hashes)), 2) if (hashes[i] ^ hashes[j]).bit_count() <= radius]
    a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return joined(np.arange(len(hashes)), a, b)


def by_blocks(hashes: list[int], radius: int) -> np.ndarray:
    hash_N = np.array(hashes, dtype=np.uint64)
    root_N = np.arange(len(hashes))
    for mask in block_masks(radius):
        for a, b in near_pairs(hash_N, np.arange(len(hashes)), mask, radius):
            root_N = joined(root_N, a, b)
    return root_N


@pytest.mark.parametrize("radius", [0, 1, 4, 8])
def test_the_same_groups_as_by_all_pairs(radius: int) -> None:
    rng = np.random.default_rng(radius)
    hashes = [int(h) for h in rng.integers(0, 1 << 63, 150)]
    for i in range(150):  # beside each another one up to 10 bits away
        flips = rng.choice(64, rng.integers(0, 11), replace=False)
        hashes.append(hashes[i] ^ sum(1 << int(bit) for bit in flips))
    groups = by_blocks(hashes, radius)
    assert (groups == by_all_pairs(hashes, radius)).all()
    assert 150 <= len(np.unique(groups)) < 300


def test_hashes_that_share_most_of_their_bits_are_told_apart() -> None:
    hashes = [int(h) for h in np.random.default_rng(0).integers(0, 1 << 20, 60)]
    groups = by_blocks(hashes, 4)
    assert (groups == by_all_pairs(hashes, 4)).all()
    assert 1 < len(np.unique(groups)) < 60


def test_a_crowd_within_the_radius_is_one_group() -> None:
    rng = np.random.default_rng(0)
    center = int(rng.integers(0, 1 << 63))
    crowd = [center ^ sum(1 << int(bit) for bit in rng.choice(64, 2, replace=False)) for _ in range(2000)]
    assert len(np.unique(by_blocks([*crowd, *crowd], 4))) == 1


def test_chains_of_any_order_are_joined() -> None:
    order = np.random.default_rng(0).permutation(1000)
    assert (joined(np.arange(1000), order[:-1], order[1:]) == 0).all()
    assert (joined(np.arange(5), np.array([3, 1]), np.array([4, 2])) == [0, 1, 1, 3, 3]).all()
