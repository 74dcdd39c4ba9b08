import torch

from pipelines.train import batches

CPU = torch.device("cpu")


def test_order_visits_everything_once_an_epoch_and_is_a_function_of_seed_and_step() -> None:
    order = batches.Order(10, 4, seed=1)
    rows = torch.cat([order.batch(step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    fresh = batches.Order(10, 4, seed=1)
    assert torch.equal(fresh.batch(3), order.batch(3))
    assert not torch.equal(batches.Order(10, 4, seed=2).batch(0), order.batch(0))


def test_a_batch_may_be_larger_than_what_there_is() -> None:
    rows = batches.Order(3, 8, seed=0).batch(0)
    assert torch.bincount(rows).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_generators_of_different_steps_and_seeds_differ() -> None:
    draws = {
        torch.rand(1, generator=batches.generator(seed, step, CPU)).item() for seed in range(5) for step in range(20)
    }
    assert len(draws) == 100
