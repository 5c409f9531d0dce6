"""Launch a run of two processes again and again under load, and look for one that does not end.

    python tests/stress_process_group.py --launches 300 --busy 2 --py_spy py-spy

Both processes are forked from a parent that has imported everything, so that a launch takes a fraction of a second;
each opens a process group, trains, closes the group and ends as a launched script does. With `--py_spy`, the stacks
of a run that hangs are printed, native frames too. Ends with 1 if any run hung or failed. Not collected by pytest;
results/process-group.txt is what it printed.
"""

import argparse
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "WANDB_MODE": "offline"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch._dynamo  # what a prepared model would import, in each process

from training.cli import run_script
from training.run import close_accelerator, open_accelerator, sum_over_processes


@dataclass(frozen=True)
class Config:
    recipe: str = "tiny"  # name of the recipe
    updates: int = 3  # updates in all


def train(config: Config) -> None:
    """What the scripts do with a process group, and nothing else."""
    accelerator = open_accelerator()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(config.updates):
        loss = model(torch.randn(4, 8)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        total = sum_over_processes(accelerator, loss.detach().reshape(1))
    print("loss", float(total), flush=True)
    close_accelerator(accelerator)
    print("closed", flush=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def be_process(rank: int, port: int, folder: Path) -> None:
    """What one of the two processes does; where it comes back, the caller leaves through Python's shutdown."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["stress_process_group.py", "tiny"]
    run_script(train, {"tiny": ("three updates", Config())}, "")


def wait_for(processes: list[int], seconds: float) -> dict[int, int]:
    """Exit codes of those that ended in time, by process id."""
    deadline, codes = time.monotonic() + seconds, {}
    while len(codes) < len(processes) and time.monotonic() < deadline:
        for process in set(processes) - codes.keys():
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return codes


def show_stacks(process: int, folder: Path, rank: int, py_spy: str) -> None:
    print(
        f"--- rank {rank}, process {process}, has printed:\n{(folder / f'rank{rank}.log').read_text()}", flush=True
    )
    for task in sorted(Path(f"/proc/{process}/task").iterdir()):
        print(
            f"thread {task.name} {(task / 'comm').read_text().strip()}: {(task / 'wchan').read_text()}", flush=True
        )
    if py_spy:
        subprocess.run([py_spy, "dump", "--native", "--pid", str(process)], check=False)


def main() -> int | None:
    """The exit code of the parent; None in a process that trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=300, help="runs of two processes")
    parser.add_argument("--busy", type=int, default=2, help="endless loops that run beside")
    parser.add_argument("--seconds", type=float, default=60, help="a run that takes longer has hung")
    parser.add_argument("--py_spy", default="", help="the py-spy program, for stacks of what hangs")
    options = parser.parse_args()
    gc.freeze()  # else the shutdown of each child would look through, and copy, all that was imported
    hung, failed, started = 0, 0, time.monotonic()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        for launch in range(1, options.launches + 1):
            folder = tempfile.mkdtemp()
            port, processes = free_port(), []
            for rank in range(2):
                process = os.fork()
                if process == 0:
                    busy = []
                    be_process(rank, port, Path(folder))
                    return None
                processes.append(process)
            codes = wait_for(processes, options.seconds)
            for rank, process in enumerate(processes):
                if process not in codes:
                    show_stacks(process, Path(folder), rank, options.py_spy)
                elif codes[process] != 0:
                    print(f"launch {launch}: rank {rank} ended with {codes[process]}")
                    print((Path(folder) / f"rank{rank}.log").read_text(), flush=True)
            for process in set(processes) - codes.keys():
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            hung += len(codes) < 2
            failed += any(codes.values())
            shutil.rmtree(folder)
            if launch % 50 == 0 or launch == options.launches:
                took = (time.monotonic() - started) / launch
                print(f"{launch} launches, {hung} hung, {failed} failed, {took:.2f} s each", flush=True)
    finally:
        for process in busy:
            process.kill()
    return 1 if hung or failed else 0


if __name__ == "__main__":
    code = main()
    if code is not None:
        sys.exit(code)
