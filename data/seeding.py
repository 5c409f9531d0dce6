"""Random streams that depend on what they are for, and not on what was drawn before."""

import numpy as np
import torch


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator on `device` for the numbers of `key`, such as (seed, epoch, update), all >= 0.

    Keys that differ in any number, or in their length, give independent streams (numpy's SeedSequence).
    """
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state) & (2**63 - 1))
