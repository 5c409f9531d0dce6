"""Learning-rate range test: raise the rate at each update, watch the loss, suggest a rate, undo it all.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3, with the
exponential growth of the rate and the smoothed loss of fast.ai.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from training.errors import UsageError
from training.preserved_state import preserved_state
from training.run import sum_over_processes

TRIMMED_END = 5  # updates left out at the end, where the loss is about to blow up
MIN_STEPS = 20  # updates that a test must be allowed
MIN_POINTS = 10  # updates that must remain, both ends trimmed, to carry a suggestion


@dataclass(frozen=True)
class LRRangeTest:
    """What a range test saw and suggests. The sequences have one entry per update with a finite loss."""

    lrs: tuple[float, ...]  # rates tried, rising
    losses: tuple[float, ...]  # raw loss of each update
    smoothed: tuple[float, ...]  # bias-corrected exponential moving average of the losses
    steepest: float | None  # rate at which the smoothed loss falls fastest: the bolder choice
    valley: float | None  # rate in the middle of the longest descent: the safer choice
    reason: str  # one line: why these suggestions, or why none
    stopped: str  # one line: what ended the test


def find_lr(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    updates: Sequence[Any],
    train: Callable[[Any, int, float], tuple[dict[str, Tensor], Tensor]],
    count: Callable[[Any], int],
    max_lr: float = 1.0,
) -> LRRangeTest:
    """A range test over `updates`, again and again, from step 0 on, as the run would begin.

    `train(update, step, lr)` returns the sums of this process and the gradient norm; `count(update)` is what the
    sum of the loss is divided by.
    """
    steps = itertools.count()

    def mean_loss(lr: float) -> Tensor:
        step = next(steps)
        update = updates[step % len(updates)]
        sums, *_ = train(update, step, lr)
        return sum_over_processes(accelerator, sums["loss"]) / count(update)

    return lr_range_test(mean_loss, accelerator=accelerator, model=model, optimizer=optimizer, max_lr=max_lr)


def lr_range_test(
    update: Callable[[float], float | Tensor],
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    min_lr: float = 1e-7,
    max_lr: float = 1.0,
    n_steps: int = 100,
    stop_factor: float = 4.0,
    smoothing: float = 0.9,
) -> LRRangeTest:
    """Train `n_steps` updates at rates that grow by a constant factor from `min_lr` to `max_lr`.

    `update(lr)` makes one full training update at that rate, over all its micro-batches, and returns its
    loss, already reduced over the processes, so that every process stops at the same update. It must leave
    alone what `preserved_state` does not keep, such as an EMA of the weights or the position in the data.

    The test ends early once the smoothed loss exceeds its minimum by `stop_factor - 1` times the minimum's
    size (for a positive loss and 4.0: at four times the minimum), or at the first loss that is not finite.
    `smoothing` is the weight of the past in the moving average: the higher, the smoother and the later the
    curve. At 0.9 it lags by about ten updates.

    Raises `UsageError` where the range is empty, `n_steps` is too small to suggest anything, or the optimizer
    belongs to DeepSpeed.
    """
    if not 0.0 < min_lr < max_lr:
        raise UsageError(f"LR range test from {min_lr:g} to {max_lr:g}: give 0 < min_lr < max_lr")
    if n_steps < MIN_STEPS:
        raise UsageError(f"LR range test of {n_steps} updates: give it at least {MIN_STEPS}")

    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    stopped = f"reached the highest rate, {max_lr:g}"
    with preserved_state(accelerator, model, optimizer):
        for lr in np.geomspace(min_lr, max_lr, n_steps).tolist():
            loss = float(update(lr))
            if not math.isfinite(loss):
                stopped = f"the loss was {loss} at a rate of {lr:.3g}"
                break
            average = smoothing * average + (1 - smoothing) * loss
            lrs.append(lr)
            losses.append(loss)
            smoothed.append(average / (1 - smoothing ** len(lrs)))
            best = min(smoothed)
            if smoothed[-1] - best > (stop_factor - 1) * abs(best):
                stopped = f"the loss diverged at a rate of {lr:.3g}: {smoothed[-1]:.4g} after {best:.4g}"
                break

    steepest, valley, reason = _suggest(lrs, losses, smoothed, n_steps, smoothing)
    return LRRangeTest(tuple(lrs), tuple(losses), tuple(smoothed), steepest, valley, reason, stopped)


def _suggest(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], n_steps: int, smoothing: float
) -> tuple[float | None, float | None, str]:
    """Rates by steepest descent and by valley, and the reason. The noisy start and the end are left out."""
    kept = slice(n_steps // 10, -TRIMMED_END)
    lrs, raw, curve = lrs[kept], np.array(losses[kept]), np.array(smoothed[kept])
    if len(lrs) < MIN_POINTS:
        return None, None, "no suggestion: the test ended after too few updates; start it from a lower rate"
    lowest = int(curve.argmin())
    fall = curve[0] - curve[lowest]
    # The median jump between neighbours is about one standard deviation of the raw noise, with or without a
    # trend; the variance of a moving average is smaller by (1 - smoothing) / (1 + smoothing).
    noise = float(np.median(np.abs(np.diff(raw)))) * math.sqrt((1 - smoothing) / (1 + smoothing))
    if fall <= max(4 * noise, 1e-6 * abs(curve[0])):  # the latter is rounding
        return None, None, f"no suggestion: the loss fell by {fall:.2g}, maybe by noise; try a higher max_lr"
    descent = curve[: lowest + 1]  # past its lowest point the loss falls by noise alone
    steepest = lrs[int(np.gradient(descent).argmin())]
    valley = lrs[_middle_of_longest_descent(curve)]
    reason = (
        f"the smoothed loss fell from {curve[0]:.4g} to {curve[lowest]:.4g}, fastest at {steepest:.2e}; "
        f"the middle of its longest descent is {valley:.2e}"
    )
    return steepest, valley, reason


def _middle_of_longest_descent(losses: np.ndarray) -> int:
    """Index half-way along the longest descent, counted back from where that descent ends.

    A descent may skip over bumps: it is the longest strictly falling subsequence, as in fast.ai's `valley`.
    """
    length = np.ones(len(losses), dtype=int)  # of the longest falling subsequence that ends here
    for i in range(1, len(losses)):
        length[i] += length[:i][losses[:i] > losses[i]].max(initial=0)
    end = int(length.argmax())
    start = max(end - int(length[end]), 0)
    return (start + end) // 2
