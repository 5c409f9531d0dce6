"""Sums by name over the micro-batches of an update."""

from torch import Tensor


def add_to(sums: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    """Add each of `terms` to the sum of its name, without its gradient."""
    for name, value in terms.items():
        value = value.detach()
        sums[name] = sums[name] + value if name in sums else value
