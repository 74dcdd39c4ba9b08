"""Learning rate as a pure function of the step."""

import math


def cosine(step: int, num_steps: int, peak: float) -> float:
    """FixMatch's decay (arXiv 2001.07685): peak * cos(7 pi step / (16 num_steps))."""
    return peak * math.cos(7 * math.pi * step / (16 * num_steps))
