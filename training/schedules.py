"""The learning-rate schedule, a pure function of the update's number, and the one line that applies it.

The loop sets the rate before each update. No scheduler object is prepared, so there is none to step too often
on several processes and none to save: after a resume the rate follows from the step.
"""

import math
from typing import Literal

from torch.optim import Optimizer

from training.errors import UsageError


def one_cycle(
    step: int,
    *,
    total_steps: int,
    max_lr: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
    anneal: Literal["cos", "linear"] = "cos",
) -> float:
    """The learning rate of update `step`, counted from 0, under the one-cycle policy.

    It rises from `max_lr / div_factor` to `max_lr` over the first `pct_start` of the updates, then falls to
    `max_lr / div_factor / final_div_factor` at the last update, `total_steps - 1`: at once, or in `three_phase`
    first over another `pct_start` of the updates back to where it began. Steps past the last one keep its rate.
    With both divisors 1 the rate is constant. Equal to `torch.optim.lr_scheduler.OneCycleLR` for the same
    arguments; where torch divides by zero (`pct_start * total_steps == 1`, a warm-up of no length) the first
    update takes `max_lr`.

    Raises `ValueError` for a negative step or an unknown `anneal`, and `UsageError` for fewer than one step
    in total, a `pct_start` outside [0, 1], or above 0.5 in three phases, which torch would not bring to an end.

    Source: Smith and Topin, Super-Convergence, arXiv:1708.07120, which has three phases, and fast.ai's two.
    """
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    if anneal not in ("cos", "linear"):
        raise ValueError(f"anneal must be 'cos' or 'linear', got {anneal!r}")
    if total_steps < 1:
        raise UsageError(f"one-cycle schedule of {total_steps} updates: train for at least one update")
    if not 0.0 <= pct_start <= 1.0:
        raise UsageError(f"pct_start is {pct_start}: give the share of the warm-up between 0 and 1")
    if three_phase and pct_start > 0.5:
        raise UsageError(f"pct_start is {pct_start}, for each of two of the three phases: give at most 0.5")

    initial_lr = max_lr / div_factor
    final_lr = initial_lr / final_div_factor
    last_step = total_steps - 1
    step = min(step, last_step)
    # The peak, and the end of the fall from it, are fractional as in torch: they may lie between two updates.
    peak_step = pct_start * total_steps - 1
    fallen_step = 2 * pct_start * total_steps - 2 if three_phase else last_step
    if step <= peak_step:
        start, end = initial_lr, max_lr
        progress = step / peak_step if peak_step > 0 else 1.0
    elif step <= fallen_step:
        start, end = max_lr, initial_lr if three_phase else final_lr
        progress = (step - peak_step) / (fallen_step - peak_step)
    else:
        start, end = initial_lr, final_lr
        progress = (step - fallen_step) / (last_step - fallen_step)

    if anneal == "linear":
        return start + (end - start) * progress
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every parameter group to `lr`, times the group's own constant `lr_factor` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
