"""Sums by name since the last log line, kept on the device so that the loop does not wait for it, and a clock."""

import math
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from training.errors import TrainingDiverged
from training.run import sum_over_processes

MAX_SKIPPED = 50  # fp16 overflows in a row: halving the loss scale that often no longer helps


class LogWindow:
    """Sums of named values over the updates since the last log line, what they are divided by, and the time.

    Each process adds its own sums; the count (tokens, images or pixels of the whole update) is known to all.
    The names are those of the first sums that are added. The clock runs between `start` and `stop`;
    `train_seconds` is its total.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.train_seconds = 0.0
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []  # one (n_names,) tensor an update, on the device
        self._summed: Tensor | None = None  # the rows over all processes, on the host, once they were asked for
        self._count = 0
        self._seconds = 0.0
        self._skipped = 0
        self._started: float | None = None

    # -- the clock ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the clock run."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """Halt the clock."""
        if self._started is None:
            return
        lap = time.perf_counter() - self._started
        self._seconds += lap
        self.train_seconds += lap
        self._started = None

    # -- the sums -----------------------------------------------------------------------------------------

    def add(self, sums: dict[str, Tensor], count: int) -> None:
        """Add one update: this process's sums by name, and the count of the whole update."""
        self._take_names(sums)
        self._rows.append(torch.stack([value.float() for value in sums.values()]))
        self._summed = None
        self._count += count
        self._skipped = 0

    @property
    def is_empty(self) -> bool:
        """Whether no update was added since the last log line."""
        return not self._rows

    def _take_names(self, sums: dict[str, Tensor]) -> None:
        names = tuple(sums)
        if self._rows and names != self._names:
            if self.accelerator.is_main_process:
                print(
                    f"{', '.join(self._names)} were logged before, {', '.join(names)} are now: the averages of the "
                    "next log line begin here",
                    file=sys.stderr,
                    flush=True,
                )
            self._empty()
        self._names = names

    def skip(self, sums: dict[str, Tensor], step: int, last_checkpoint: Path | None) -> None:
        """Note that fp16 overflowed instead of an update. All processes call.

        Raises TrainingDiverged where a smaller loss scale cannot mend it: the loss itself is not finite, or
        it has overflowed MAX_SKIPPED times in a row.
        """
        self._skipped += 1
        values = torch.stack([value.float() for value in sums.values()])
        finite = bool(sum_over_processes(self.accelerator, values).isfinite().all())
        if not finite or self._skipped == MAX_SKIPPED:
            raise _diverged(step + 1, last_checkpoint)

    def _summed_rows(self) -> Tensor:
        if self._summed is None:
            rows = torch.stack(self._rows) if self._rows else torch.zeros(0, len(self._names))
            self._summed = sum_over_processes(self.accelerator, rows.to(self.accelerator.device)).cpu()  # waits
        return self._summed

    def raise_if_diverged(self, step: int, gradient_norm: Tensor | float, last_checkpoint: Path | None) -> None:
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

    def read(self) -> tuple[dict[str, float], float]:
        """Each name's sum over the count, and the count per second; empties the window. All processes call."""
        sums = self._summed_rows().double().sum(0).tolist()
        self.stop()
        means = {name: total / self._count for name, total in zip(self._names, sums, strict=True)}
        rate = self._count / self._seconds if self._seconds > 0 else math.nan
        self._empty()
        self.start()
        return means, rate

    def _empty(self) -> None:
        self._rows = []
        self._summed = None
        self._count = 0
        self._seconds = 0.0

    # -- checkpoints --------------------------------------------------------------------------------------

    def state(self) -> dict:
        """JSON data for a checkpoint between two log lines. All processes call."""
        return {
            "names": list(self._names),
            "rows": self._summed_rows().tolist(),
            "count": self._count,
            "seconds": self._seconds,
            "train_seconds": self.train_seconds,
        }

    def load(self, state: dict) -> None:
        """Go on from `state()`. The saved sums are of all processes, so one of them takes them on.

        Of a state without names, as checkpoints had it before names were kept, only the time is taken.
        """
        self.train_seconds = state["train_seconds"]
        if not state.get("names"):
            return
        rows = [torch.tensor(row, device=self.accelerator.device) for row in state["rows"]]
        if not self.accelerator.is_main_process:
            rows = [torch.zeros_like(row) for row in rows]
        self._names = tuple(state["names"])
        self._rows, self._count, self._seconds = rows, state["count"], state["seconds"]
        self._summed = None


def _diverged(step: int, last_checkpoint: Path | None) -> TrainingDiverged:
    good = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "none was saved yet"
    return TrainingDiverged(
        f"the loss or its gradient is not finite at step {step}; {good}. Try a lower --lr (see --find_lr), a "
        "smaller --max_grad_norm, or bf16 or fp32 instead of fp16"
    )
