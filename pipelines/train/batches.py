"""The rows of each batch, and its random numbers, as pure functions of seed and step."""

import numpy as np
import torch
from torch import Tensor


class Order:
    """Endless shuffled epochs over `num` items, cut into batches."""

    def __init__(self, num: int, batch_size: int, seed: int) -> None:
        self._num, self._batch_size, self._seed = num, batch_size, seed
        self._epochs: dict[int, Tensor] = {}

    def batch(self, step: int) -> Tensor:
        """Rows (batch_size,) int64 of batch `step`; a batch may span epochs."""
        first = step * self._batch_size
        position = torch.arange(first, first + self._batch_size)
        epoch = position // self._num
        rows = torch.empty_like(position)
        for number in sorted(set(epoch.tolist())):
            inside = epoch == number
            rows[inside] = self._epoch(number)[position[inside] % self._num]
        return rows

    def _epoch(self, number: int) -> Tensor:
        if number not in self._epochs:
            self._epochs = {key: value for key, value in self._epochs.items() if key == number - 1}
            self._epochs[number] = torch.randperm(
                self._num, generator=generator(self._seed, number, torch.device("cpu"))
            )
        return self._epochs[number]


def generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Generator that depends on (seed, step) alone, so that no random state needs to be saved."""
    mixed = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(mixed & (2**63 - 1))
