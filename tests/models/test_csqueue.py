"""The queue against a plain Python one, and its invariants."""

import torch

from models.csqueue import CSQueue


def push(
    queue: CSQueue, rows: list[int], scores: list[float], labels: list[int], p: int, q: int, seed: int = 0
) -> None:
    queue.push(
        torch.tensor(rows),
        torch.tensor(scores),
        torch.tensor(labels),
        num_classes=p,
        per_class=q,
        rng=torch.Generator().manual_seed(seed),
    )


def held(queue: CSQueue) -> list[set[int]]:
    return [set(row[row >= 0].tolist()) for row in queue.index]


def test_pushes_the_highest_scores_of_each_class() -> None:
    queue = CSQueue(3, 4)
    push(queue, [10, 11, 12, 13, 14], [0.1, 0.9, 0.5, 0.7, 0.2], [0, 0, 1, 1, 1], p=3, q=1)
    assert held(queue) == [{11}, {13}, set()]
    push(queue, [20, 21, 22], [0.3, 0.2, 0.1], [2, 2, 2], p=3, q=2)
    assert held(queue)[2] == {20, 21}
    assert queue.size.tolist() == [1, 1, 2]


def test_an_index_is_held_once() -> None:
    queue = CSQueue(1, 4)
    for _ in range(3):
        push(queue, [7], [0.9], [0], p=1, q=1)
    assert queue.index[0].tolist() == [7, -1, -1, -1]
    assert queue.size.tolist() == [1]


def test_oldest_leaves_first() -> None:
    queue = CSQueue(1, 3)
    for row in range(5):
        push(queue, [row], [0.5], [0], p=1, q=1)
    assert held(queue) == [{2, 3, 4}]


def test_only_p_classes_and_the_emptiest_first() -> None:
    queue = CSQueue(4, 8)
    for row in range(3):
        push(queue, [row], [0.5], [0], p=1, q=1)
    push(queue, [100, 101, 102, 103], [0.9, 0.1, 0.1, 0.1], [0, 1, 2, 3], p=3, q=1)
    assert [len(rows) for rows in held(queue)] == [3, 1, 1, 1]


def test_full_classes_are_chosen_at_random_for_few_and_by_score_for_many() -> None:
    few, many = CSQueue(3, 1), CSQueue(20, 1)
    push(few, [0, 1, 2], [0.5] * 3, [0, 1, 2], p=3, q=1)
    push(many, list(range(20)), [0.5] * 20, list(range(20)), p=20, q=1)
    chosen = set()
    for seed in range(20):
        before = held(few)
        push(few, [10 * seed + 10, 10 * seed + 11, 10 * seed + 12], [0.9, 0.1, 0.1], [0, 1, 2], p=1, q=1, seed=seed)
        chosen.add(next(k for k in range(3) if held(few)[k] != before[k]))
    assert chosen == {0, 1, 2}
    scores = [0.1] * 20
    scores[7] = 0.9
    push(many, list(range(100, 120)), scores, list(range(20)), p=1, q=1)
    assert [k for k in range(20) if held(many)[k] != {k}] == [7]


def test_draws_are_class_balanced_and_held() -> None:
    queue = CSQueue(3, 100)
    for row in range(99):
        push(queue, [row], [0.5], [0], p=1, q=1)
    push(queue, [500], [0.5], [2], p=1, q=1)
    drawn = queue.draw(4000, torch.Generator().manual_seed(0))
    share = (drawn == 500).float().mean()
    assert abs(share - 0.5) < 0.04
    assert set(drawn.tolist()) <= set(range(99)) | {500}


def test_fill_keeps_the_best_and_drops_the_worst_of_them_first() -> None:
    queue = CSQueue(2, 3)
    rows = torch.arange(10)
    queue.fill(rows, torch.linspace(0, 1, 10), torch.tensor([0] * 8 + [1] * 2))
    assert held(queue) == [{5, 6, 7}, {8, 9}]
    assert queue.mean_score() == 1.0
    push(queue, [50], [0.5], [0], p=2, q=1)
    assert held(queue) == [{6, 7, 50}, {8, 9}]
    assert queue.mean_score() < 1.0


def test_state_survives_a_checkpoint() -> None:
    queue, other = CSQueue(2, 3), CSQueue(2, 3)
    push(queue, [1, 2], [0.3, 0.4], [0, 1], p=2, q=1)
    other.load_state_dict(queue.state_dict())
    push(queue, [3], [0.3], [0], p=1, q=1)
    push(other, [3], [0.3], [0], p=1, q=1)
    assert torch.equal(queue.index, other.index)
    assert torch.equal(queue.next, other.next)
