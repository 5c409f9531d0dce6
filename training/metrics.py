"""Loss sums kept on the device between two log lines, so that the loop does not wait for it."""

import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from training.errors import TrainingDiverged
from training.run import sum_over_processes

MAX_SKIPPED = 50  # fp16 overflows in a row: halving the loss scale that often no longer helps


class MetricWindow:
    """Sums of named values over the updates since the last log line, what they are divided by, and the time.

    Each process adds its own sums; the count (tokens, images or pixels of the whole update) is known to all.
    `rate` names the count per second, such as "train/tokens_per_second". The clock runs between `start` and
    `stop`, which the loop calls around what is not training; `train_seconds` is its total.
    """

    def __init__(self, accelerator: Accelerator, names: tuple[str, ...], rate: str):
        self.accelerator, self.names, self.rate = accelerator, names, rate
        self._rows: list[torch.Tensor] = []  # one (n_names,) tensor an update, on the device
        self._count, self._seconds, self._skipped = 0, 0.0, 0
        self._started: float | None = None
        self.train_seconds = 0.0

    def start(self) -> None:
        """Let the clock run."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Halt the clock."""
        if self._started is not None:
            lap = time.perf_counter() - self._started
            self._seconds, self.train_seconds = self._seconds + lap, self.train_seconds + lap
            self._started = None

    def add(self, sums: torch.Tensor, count: int) -> None:
        """Add one update: sums (n_names,) of this process, and the update's count."""
        self._rows.append(sums)
        self._count += count
        self._skipped = 0

    def skip(self, sums: torch.Tensor, step: int, last_checkpoint: Path | None) -> None:
        """Note that fp16 overflowed instead of an update. All processes call.

        Raises TrainingDiverged where a smaller loss scale cannot mend it: the loss itself is not finite, or
        it has overflowed MAX_SKIPPED times in a row.
        """
        self._skipped += 1
        finite = bool(sum_over_processes(self.accelerator, sums).isfinite().all())
        if not finite or self._skipped == MAX_SKIPPED:
            raise _diverged(step + 1, last_checkpoint)

    def _summed_rows(self) -> torch.Tensor:
        rows = torch.stack(self._rows) if self._rows else torch.zeros(0, len(self.names))
        return sum_over_processes(self.accelerator, rows.to(self.accelerator.device)).cpu()  # the one sync

    def raise_if_diverged(
        self, step: int, gradient_norm: torch.Tensor | float, last_checkpoint: Path | None
    ) -> None:
        """Raise TrainingDiverged where a sum of the window, which ends at `step`, is NaN or infinite.

        So must be the latest gradient norm: gradients that are not finite have spoilt the weights already,
        before any loss shows it. Called by all processes, before anything is saved, so that the last
        checkpoint stays a good one.
        """
        finite = self._summed_rows().isfinite().all(dim=1).tolist()
        if False in finite:
            raise _diverged(step - (len(finite) - 1 - finite.index(False)), last_checkpoint)
        if not math.isfinite(float(gradient_norm)):
            raise _diverged(step, last_checkpoint)

    def read(self) -> dict[str, float]:
        """Each name's sum over the count, and the rate; empties the window. All processes call."""
        sums = self._summed_rows().double().sum(0).tolist()
        self.stop()
        values = {name: total / self._count for name, total in zip(self.names, sums, strict=True)}
        values[self.rate] = self._count / self._seconds if self._seconds > 0 else math.nan
        self._rows, self._count, self._seconds = [], 0, 0.0
        self.start()
        return values

    def state(self) -> dict:
        """JSON data for a checkpoint between two log lines. All processes call."""
        return {
            "rows": self._summed_rows().tolist(), "count": self._count, "seconds": self._seconds,
            "train_seconds": self.train_seconds,
        }  # fmt: skip

    def load(self, state: dict) -> None:
        """Go on from `state()`. The saved sums are of all processes, so one of them takes them on."""
        rows = [torch.tensor(row, device=self.accelerator.device) for row in state["rows"]]
        if not self.accelerator.is_main_process:
            rows = [torch.zeros_like(row) for row in rows]
        self._rows, self._count, self._seconds = rows, state["count"], state["seconds"]
        self.train_seconds = state["train_seconds"]


def _diverged(step: int, last_checkpoint: Path | None) -> TrainingDiverged:
    good = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "none was saved yet"
    return TrainingDiverged(
        f"the loss or its gradient is not finite at step {step}; {good}. Try a lower --lr (see --find_lr), a "
        "smaller --max_grad_norm, or bf16 or fp32 instead of fp16"
    )
