"""Loss sums kept on the device between two log lines, so that the loop does not wait for it."""

import math
from pathlib import Path

import torch
from accelerate import Accelerator

from training.errors import TrainingDiverged
from training.run import sum_over_processes


class MetricWindow:
    """Sums of named values over the updates since the last log line, and what they are divided by.

    Each process adds its own sums; the count (tokens, images or pixels of the whole update) is known to all.
    `rate` names the count per second, such as "train/tokens_per_second".
    """

    def __init__(self, accelerator: Accelerator, names: tuple[str, ...], rate: str):
        self.accelerator, self.names, self.rate = accelerator, names, rate
        self._rows: list[torch.Tensor] = []  # one (n_names,) tensor an update, on the device
        self.count, self.seconds = 0, 0.0

    def add(self, sums: torch.Tensor, count: int, seconds: float) -> None:
        """Add one update: sums (n_names,) of this process, the update's count, its seconds."""
        self._rows.append(sums)
        self.count += count
        self.seconds += seconds

    def _summed_rows(self) -> torch.Tensor:
        rows = torch.stack(self._rows) if self._rows else torch.zeros(0, len(self.names))
        return sum_over_processes(self.accelerator, rows.to(self.accelerator.device)).cpu()  # the one sync

    def raise_if_diverged(self, step: int, last_checkpoint: Path | None) -> None:
        """Raise TrainingDiverged where a sum of the window, which ends at `step`, is NaN or infinite.

        Called by all processes, before anything is saved, so that the last checkpoint stays a good one.
        """
        finite = self._summed_rows().isfinite().all(dim=1).tolist()
        if False in finite:
            good = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "none was saved yet"
            raise TrainingDiverged(
                f"the loss is not finite at step {step - (len(finite) - 1 - finite.index(False))}; {good}. Try a "
                "lower --lr (see --find_lr), a smaller --max_grad_norm, or bf16 or fp32 instead of fp16"
            )

    def read(self) -> dict[str, float]:
        """Each name's sum over the count, and the rate; empties the window. All processes call."""
        sums = self._summed_rows().double().sum(0).tolist()
        values = {name: total / self.count for name, total in zip(self.names, sums, strict=True)}
        values[self.rate] = self.count / self.seconds if self.seconds > 0 else math.nan
        self._rows, self.count, self.seconds = [], 0, 0.0
        return values

    def state(self) -> dict:
        """JSON data for a checkpoint between two log lines. All processes call."""
        return {"rows": self._summed_rows().tolist(), "count": self.count, "seconds": self.seconds}

    def load(self, state: dict) -> None:
        """Go on from `state()`. The saved sums are of all processes, so one of them takes them on."""
        rows = [torch.tensor(row, device=self.accelerator.device) for row in state["rows"]]
        if not self.accelerator.is_main_process:
            rows = [torch.zeros_like(row) for row in rows]
        self._rows, self.count, self.seconds = rows, state["count"], state["seconds"]
