"""A script launched by `accelerate launch` as a child that is waited for, and stopped so that it saves."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

SAVES_WITHIN = 300.0  # seconds that a run has to save after SIGTERM, before it is killed


class LaunchedRun:
    """A run of a script in the folder `root`, whose output is appended to the file `log`.

    `threads` are those of a process; 0: what the launch takes, whatever OMP_NUM_THREADS says here. A context:
    whatever ends it stops the run.
    """

    def __init__(self, script: str, arguments: Sequence[str], *, launch: str, threads: int, log: Path, root: Path):
        config = f"accelerate_configs/{launch}.yaml"
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with log.open("ab") as output:
            self._launcher = subprocess.Popen(
                [*launcher, script, *arguments],
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is ours alone
            )

    def __enter__(self) -> "LaunchedRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, seconds: float | None) -> int | None:
        """The launcher's exit code; None if the run is still going on after so many seconds."""
        try:
            return self._launcher.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End the run as SIGTERM does: it saves first. No effect on one that has ended."""
        if self._launcher.poll() is not None:
            return
        # The launcher hands no signal through; it ends when its scripts have ended.
        launcher = psutil.Process(self._launcher.pid)
        for process in launcher.children() or [launcher]:
            process.terminate()
        if self.wait(SAVES_WITHIN) is None:
            for process in [*launcher.children(recursive=True), launcher]:
                process.kill()
            self._launcher.wait()


class Deadline:
    """A point in time some hours ahead; of 0 hours, none."""

    def __init__(self, hours: float):
        self.minutes = 60 * hours if hours else float("inf")
        self._ends_at = time.monotonic() + 60 * self.minutes

    def minutes_left(self) -> float:
        return (self._ends_at - time.monotonic()) / 60

    def seconds_left(self) -> float | None:
        """For a wait; None: without end."""
        left = 60 * self.minutes_left()
        return None if left == float("inf") else max(left, 0.0)

    def leaves_room_for(self, minutes: float) -> bool:
        """Whether so much fits in, or would fit into no piece of this length: that is done in pieces."""
        left = self.minutes_left()
        return left > 0 and (minutes <= left or minutes > self.minutes)
