"""Runs of scripts and tools in processes that are forked with the libraries already imported.

To start Python anew and import torch, accelerate and the like takes longer than most tests train. Here a server
imports them once in a worker of pytest, and nothing of the project, whose files each run imports as they are then.
Each run is a process of its own: with its arguments, environment, working folder, streams and exit code.

It does without what a fresh interpreter or a launcher does: imports that are missing, the order of hashes (here the
same in all processes), signals, one process that ends the others. Tests of those launch in earnest.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

from blank_figures import save_blank

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = [
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "accelerate",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "PIL.Image",
    "psutil",
    "sacrebleu",
    "safetensors.torch",
    "tokenizers",
    "tqdm",
    "tyro",
    "yaml",
]


class ForkedProcesses:
    """Processes that run `work`, each with arguments of its own, and what they print: a `subprocess.Popen` of all.

    `returncode` is 0 once each of them has ended so, else the first other exit code, negative for a signal.
    """

    def __init__(
        self,
        work: Callable[..., object],
        arguments: Sequence[tuple],
        environments: Sequence[Mapping[str, str]],
        cwd: Path = ROOT,
        stdin: str = "",
    ):
        self.returncode: int | None = None
        self._files = tempfile.TemporaryDirectory(prefix="forked-")
        streams = [Path(self._files.name) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin, encoding="utf-8")
        self._streams = streams
        self._processes = [
            _server().Process(target=_run, args=(work, given, dict(environment), cwd, streams))
            for given, environment in zip(arguments, environments, strict=True)
        ]
        for process in self._processes:
            process.start()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for all; the text that they wrote to stdout and to stderr.

        Raises:
            TimeoutError: Some process goes on after `timeout` seconds; all are killed.
        """
        deadline = time.monotonic() + timeout
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))
        late = [process for process in self._processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        self.returncode = next((code for process in self._processes if (code := process.exitcode)), 0)
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._streams[1:])
        self._files.cleanup()
        if late:
            raise TimeoutError(f"{len(late)} of {len(self._processes)} processes ran for {timeout} s\n{err}")
        return out, err


def start(
    *command: object,
    config: str = "",
    figures: bool = False,
    stdin: str = "",
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    ranks: Sequence[Mapping[str, str]] = (),
) -> ForkedProcesses:
    """Start `script.py --flag ..` or `-m module --flag ..`, as `python` would.

    Args:
        config: Name of a file of accelerate_configs: as `accelerate launch` starts its processes.
        figures: Render the figures; else each is a blank PNG.
        stdin: Text that the process reads.
        cwd: The folder of the project that is run.
        environment: In addition to this process's.
        ranks: What another launcher adds for each of its processes.

    Each process has one thread.
    """
    alone = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    if config:
        environments = _launched(alone, cwd / "accelerate_configs" / f"{config}.yaml")
    else:
        environments = [{**alone, **rank} for rank in ranks] or [alone]
    arguments = [(list(map(str, command)), cwd, figures)] * len(environments)
    return ForkedProcesses(_run_command, arguments, environments, cwd, stdin)


def run(*command: object, timeout: float = 300, check: bool = False, **options) -> subprocess.CompletedProcess:
    """Start the command, and wait until it has ended. With `check`, an exit code other than 0 is a failure."""
    started = start(*command, **options)
    out, err = started.communicate(timeout)
    assert started.returncode == 0 or not check, f"{command}: exit code {started.returncode}\n{err}"
    return subprocess.CompletedProcess(command, started.returncode, out, err)


@functools.cache
def _server() -> multiprocessing.context.BaseContext:
    """The server that forks, with the libraries imported. It ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # is read when torch is loaded
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def _launched(environment: Mapping[str, str], config_file: Path) -> list[dict[str, str]]:
    """The environment of each process that `accelerate launch` would start."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    flags = ["--config_file", str(config_file), "--main_process_port", "0", "--num_cpu_threads_per_process", "1"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([*flags, "script.py"]))
    n = arguments.num_processes
    prepare = prepare_multi_gpu_env if n > 1 else lambda given: prepare_simple_launcher_cmd_env(given)[1]
    exported = prepare(arguments)  # over this process's own environment
    changed = {name: value for name, value in exported.items() if os.environ.get(name) != value}
    if n == 1:
        return [{**environment, **changed}]
    common = {
        **changed,
        **environment,
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(arguments.main_process_port),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


def _run(work: Callable[..., object], arguments: tuple, environment: dict, cwd: Path, streams: list[Path]) -> None:
    """In the forked process: take the environment, folder and streams, and call `work(*arguments)`."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in enumerate(streams):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY  # several processes write to one
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=False)
    sys.stderr.reconfigure(encoding="utf-8", line_buffering=True)
    try:
        work(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _run_command(command: list[str], cwd: Path, figures: bool) -> None:
    """`python` with these words."""
    if not figures:
        from matplotlib.figure import Figure

        Figure.savefig = save_blank
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    packages = ("site-packages", "dist-packages")  # of a user, or of an environment below this one
    installed = [
        path
        for path in sys.path
        if path.startswith((sys.prefix, sys.base_prefix)) or os.path.basename(path) in packages
    ]
    if command[0] == "-m":
        sys.path[:] = [str(cwd), *filter(None, given), *installed]
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        script = cwd / command[0]
        sys.path[:] = [str(script.parent), *filter(None, given), *installed]
        sys.argv = command
        runpy.run_path(str(script), run_name="__main__")
