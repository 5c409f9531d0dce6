"""Loss sums kept on the device between two log lines, so that the loop does not wait for it."""

import math

import torch
from accelerate import Accelerator

from training.run import sum_over_processes


class MetricWindow:
    """Sums of named values over the updates since the last log line, and what they are divided by.

    Each process adds its own sums; `counts` (tokens, images or pixels of the whole update) are known to all.
    """

    def __init__(self, accelerator: Accelerator, names: tuple[str, ...]):
        self.accelerator, self.names = accelerator, names
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

    def updates_since_non_finite(self) -> int | None:
        """How many updates ago the first sum was NaN or infinite; None if all are finite. All processes call."""
        finite = self._summed_rows().isfinite().all(dim=1).tolist()
        return len(finite) - 1 - finite.index(False) if False in finite else None

    def read(self) -> dict[str, float]:
        """Each name's sum over the count, and `count_per_second`; empties the window. All processes call."""
        sums = self._summed_rows().double().sum(0).tolist()
        values = {name: total / self.count for name, total in zip(self.names, sums, strict=True)}
        values["count_per_second"] = self.count / self.seconds if self.seconds > 0 else math.nan
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
