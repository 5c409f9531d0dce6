"""Learning-rate range test: raise the rate at each update, watch the loss, suggest a rate, undo it all.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3, with the
exponential growth of the rate and the smoothed loss of fast.ai.
"""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from figures.curves import new_figure, save_png
from training.errors import UsageError

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


@contextmanager
def preserved_state(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Put everything that training changes back as it was, also when the body raises.

    Kept, as copies in memory on the tensors' own devices: parameters, buffers and gradients of `model`, the
    state and the groups of `optimizer` (one that has not stepped yet is again one that has not), the loss
    scale, the accumulation counter, and the random states of Python, NumPy, torch and every CUDA device.
    `model` and `optimizer` may be bare or prepared by Accelerate. Values are copied back into the same
    tensors, so that DDP, compiled graphs and the optimizer keep hold of them. `requires_grad` and train mode
    are not touched.

    Raises `UsageError` under DeepSpeed, whose engine keeps weights of its own that are out of reach here.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UsageError("the LR range test does not work under DeepSpeed: use another accelerate config")

    values = {name: value.detach().clone() for name, value in _named_tensors(model)}
    gradients = {name: copy.deepcopy(parameter.grad) for name, parameter in model.named_parameters()}
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    scaler_state = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    accumulation = accelerator.step, accelerator.sync_gradients
    rng_python, rng_numpy, rng_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    rng_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in _named_tensors(model):
                value.copy_(values[name])
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        optimizer.load_state_dict(optimizer_state)
        if scaler_state is not None:
            accelerator.scaler.load_state_dict(scaler_state)
        accelerator.step, accelerator.sync_gradients = accumulation
        random.setstate(rng_python)
        np.random.set_state(rng_numpy)
        torch.set_rng_state(rng_torch)
        if rng_cuda:
            torch.cuda.set_rng_state_all(rng_cuda)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and all buffers, also the non-persistent ones, which `state_dict` leaves out; each once."""
    return itertools.chain(model.named_parameters(), model.named_buffers())


def plot_lr_range_test(result: LRRangeTest, path: Path) -> None:
    """Write the loss over the learning rate as a PNG, raw and smoothed, with the suggestions marked."""
    figure = new_figure(width=8, height=5)
    ax = figure.add_subplot()
    ax.plot(result.lrs, result.losses, color="tab:blue", linewidth=0.8, alpha=0.5, label="loss")
    ax.plot(result.lrs, result.smoothed, color="tab:blue", linewidth=2.5, label="smoothed loss")
    suggestions = [("steepest", result.steepest, "tab:red", "o"), ("valley", result.valley, "tab:green", "s")]
    for name, lr, colour, marker in suggestions:
        if lr is not None:
            loss = result.smoothed[result.lrs.index(lr)]
            ax.axvline(lr, color=colour, linewidth=1, linestyle="--")
            ax.plot([lr], [loss], marker, color=colour, markersize=9, label=f"{name}: {lr:.2e}")
    ax.set_xscale("log")
    if result.smoothed:
        # A diverging end would flatten the descent, which is what the figure is for.
        low, high = min(result.losses), max(result.losses[: len(result.losses) // 2 + 1])
        span = high - low or 1.0
        ax.set_ylim(low - 0.1 * span, high + 0.5 * span)
    ax.set_xlabel("learning rate")
    ax.set_ylabel("training loss")
    ax.set_title(f"LR range test: {result.stopped}", fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend()
    save_png(figure, path)


def report_lr_range_test(accelerator: Accelerator, result: LRRangeTest, output_dir: Path) -> None:
    """Print the suggestions and write figures/lr_range_test.png, on the main process."""
    if not accelerator.is_main_process:
        return
    path = output_dir / "figures" / "lr_range_test.png"
    plot_lr_range_test(result, path)
    print(f"{result.stopped}; {result.reason}\nfigure: {path}")
    if result.valley is not None:
        print(f"suggestion: --lr {result.valley:.1e} (valley), or at most {result.steepest:.1e} (steepest)")
