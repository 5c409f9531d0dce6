"""How far what an export computes is from what the run's own model computes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """The largest difference of some outputs, and the limit that it must keep to."""

    outputs: str  # which, in words
    largest: float
    limit: float

    @property
    def is_small(self) -> bool:
        return self.largest <= self.limit  # False for NaN

    def __str__(self) -> str:
        return f"largest difference of {self.outputs}: {self.largest:.2g} (limit {self.limit:g})"


def largest_difference(outputs: str, expected: Tensor, found: Tensor, limit: float) -> Difference:
    """Of tensors of one shape; elements that are infinite in both, with the same sign, do not differ.

    Raises ValueError for other shapes.
    """
    if expected.shape != found.shape:
        raise ValueError(f"{outputs}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    differences = torch.where(expected == found, 0.0, (expected.double() - found.double()).abs())
    return Difference(outputs, float(differences.max()), limit)
