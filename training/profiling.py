"""Profile a few updates of a run: which operations the time goes to, as a table, and when, as a trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.profiler
from accelerate import Accelerator
from torch.profiler import ProfilerActivity

TABLE_ROWS = 40


class UpdateProfiler:
    """What the loop holds while it is profiled: call `step()` once after each update."""

    def __init__(self, torch_profiler: torch.profiler.profile | None):
        self.torch_profiler = torch_profiler
        self.n_updates = 0

    def step(self) -> None:
        """Mark the end of an update. Costs next to nothing once the profiled updates are over."""
        self.n_updates += 1
        if self.torch_profiler is not None:
            self.torch_profiler.step()


@contextmanager
def profiler(
    output_dir: Path,
    accelerator: Accelerator,
    *,
    enabled: bool = True,
    wait: int = 5,
    warmup: int = 2,
    active: int = 5,
) -> Iterator[UpdateProfiler]:
    """Profile `active` updates of the loop in the body, after `wait` left alone and `warmup` discarded.

    Writes, as soon as they are over and on the main process only,

    - `<output_dir>/profile/table.txt`: the operations that took most time themselves, on the GPU where there
      is one and else on the CPU, with their number of calls. A run too short gets a table that says so.
    - `<output_dir>/profile/trace.json.gz`: the time line, for https://ui.perfetto.dev or chrome://tracing.

    With `enabled=False`, and on the other processes, `step()` does nothing but count.
    """
    if not (enabled and accelerator.is_main_process):
        yield UpdateProfiler(None)
        return

    folder = Path(output_dir) / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = accelerator.device.type == "cuda"
    first = wait + warmup + 1  # counted from 1, as in the table

    def write(torch_profiler: torch.profiler.profile) -> None:
        # Called after the last planned update, or at the end of a shorter run, which may lack a whole one.
        if updates.n_updates < first:
            return
        last = min(updates.n_updates, first + active - 1)
        sort_by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = torch_profiler.key_averages().table(sort_by=sort_by, row_limit=TABLE_ROWS)
        heading = (
            f"Updates {first} to {last} of the run ({last - first + 1} of {active} planned; "
            f"{wait} waited and {warmup} warmed up before), the {TABLE_ROWS} operations with the most "
            f"self {'GPU' if on_gpu else 'CPU'} time. Times and calls are sums over these updates.\n\n"
        )
        (folder / "table.txt").write_text(heading + table + "\n", encoding="utf-8")
        torch_profiler.export_chrome_trace(str(folder / "trace.json.gz"))

    torch_profiler = torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
        schedule=torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1),
        on_trace_ready=write,
        acc_events=True,  # one cycle, so nothing piles up; without it torch warns of cleared events
    )
    updates = UpdateProfiler(torch_profiler)
    with torch_profiler:
        yield updates
    if updates.n_updates < first:
        (folder / "table.txt").write_text(
            f"Nothing profiled: the run made {updates.n_updates} updates, the profile starts at {first}.\n",
            encoding="utf-8",
        )
