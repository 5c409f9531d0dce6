"""Opening a run: accelerator, run folder, metrics, tracking, signals and the final summary."""

import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, reduce
from tqdm import tqdm
from tyro.conf import Suppress

from data.seeding import Stream, seed_global_generators
from training.backends import prepare_determinism, set_backends
from training.checkpoints import set_aside_after
from training.cli import PathFlag
from training.errors import UsageError
from training.home_folder import spare_a_read_only_home
from training.launch import (
    accelerator_handlers,
    keep_losses_in_fp32,
    lacks_its_gpu,
    missing_package,
    not_as_asked,
    restart_begins_anew,
    started_alone,
)
from training.processes import on_main_process
from training.ranges import Count
from training.redaction import redacted
from training.run_folder import (
    append_line,
    check_writable,
    claim_folder,
    holds_a_run,
    move_run_aside,
    release_folder,
    write_whole,
    writing,
)
from training.signals import stop_signals
from training.tracking import TrackerName, Tracking, require_tracker, shortened

_KEPT_GROUPS: list[torch.distributed.ProcessGroup | None] = []  # see close_accelerator


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The flags that every script has, for what training/ does with them. A script's Config begins with these."""

    recipe: Suppress[str]  # name of the recipe, for the run's folder and the tracker
    # --- run
    output_dir: PathFlag = ""  # where the run is written; default runs/<script>/<recipe>
    resume: PathFlag = ""  # "latest", a run folder or a checkpoint to go on from, with its run's own settings
    resume_changes: bool = False  # accept flags that make a resume another run; what they do to it is said
    eval_only: bool = False  # only evaluate the best checkpoint of --resume, or of --output_dir
    final_test: bool = True  # at the end, evaluate the best checkpoint on the test split
    checkpointing_steps: Count = 0  # updates between checkpoints; 0: one after each validation
    checkpoints_total_limit: Count = 2  # newest checkpoints that are kept, besides the best; 0: all
    log_every: Count = 20  # updates between log lines
    find_lr: bool = False  # run a learning-rate range test, suggest a rate and end
    compile: bool = False  # torch.compile the model
    deterministic: bool = False  # on a GPU take algorithms that repeat their numbers, slower; a CPU's always do
    profile: bool = False  # profile a few updates: table and trace in <output_dir>/profile
    tracker: TrackerName = "wandb"  # where metrics go besides metrics.jsonl


def begin_run(config: Any) -> Accelerator:
    """Join the processes of the launch, own the run's folder, and seed the initial weights. All processes call.

    Raises UsageError where there is nothing to do, where the tracker's package is missing, where the processes do
    not know of each other, and where the folder is not to be had.
    """
    if config.eval_only and not config.final_test:
        raise UsageError("--eval_only evaluates the test split: leave out --no_final_test")
    require_tracker(config.tracker)
    accelerator = open_accelerator(config.gradient_accumulation_steps, config.deterministic)
    own_folder(accelerator, config.output_dir)
    if restart_begins_anew(config.resume) and accelerator.is_main_process:
        _warn("the launcher restarts this run where a process fails, but from its beginning: add --resume latest")
    _forget_earlier_peak(accelerator.device)
    seed_global_generators(Stream.INITIAL_WEIGHTS, config.seed)
    return accelerator


def open_accelerator(
    gradient_accumulation_steps: int = 1, deterministic: bool = False, mixed_precision: str | None = None
) -> Accelerator:
    """The Accelerator as the launch and its YAML ask for it: precision, device and processes are theirs.

    A tool, which nothing launches, names its `mixed_precision`, and is not warned of how it was launched.

    A script that does several runs opens one for each; the processes stay joined until `close_accelerator`.
    `deterministic` as in training/backends.py.

    Raises UsageError where the launch does not get what it asks for: processes that do not know of each other, a
    model that is not sharded, a package that is missing.
    """
    spare_a_read_only_home()
    opened_before = PartialState._shared_state != {}
    cpu = not torch.accelerator.is_available()  # without this flag, two CPU processes would not join up
    missing = missing_package()
    if missing:
        raise UsageError(missing)
    prepare_determinism(deterministic)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        kwargs_handlers=accelerator_handlers(),
    )
    problem = not_as_asked(accelerator)
    if problem:
        raise UsageError(problem)
    set_backends(accelerator.device, deterministic)
    keep_losses_in_fp32(accelerator)
    if accelerator.gradient_accumulation_steps != gradient_accumulation_steps:
        raise UsageError(
            f"--gradient_accumulation_steps {gradient_accumulation_steps}, but the launch configuration says "
            f"{accelerator.gradient_accumulation_steps}: give both the same number"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Batches vary in size; the engine only wants a number, which it would else take from a DataLoader.
        accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    if accelerator.is_main_process and mixed_precision is None and not opened_before:
        for warning in _launch_warnings(accelerator):
            _warn(warning)
    return accelerator


def own_folder(accelerator: Accelerator, output_dir: str | Path) -> None:
    """Own `output_dir` until the run or the process ends. Called by all, before anything slow is done.

    Raises UsageError, in all processes, where another run owns it or where it cannot be written.
    """
    on_main_process(accelerator, lambda: claim_folder(Path(output_dir)))


def close_accelerator(accelerator: Accelerator) -> None:
    """End tracking and the process group, once all processes are here; every one must come.

    The group's object is kept for the rest of the process. Its last owner may be a DDP model: when that is let go
    of, the destructor, with Python's lock held, waits for gloo's threads to end, and one of these may wait for
    Python's lock to let go of a tensor of the last collective. So the object must outlive Python, which
    `training.cli.run_script` sees to by ending a process of several without Python's shutdown.
    """
    accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        _KEPT_GROUPS.append(torch.distributed.group.WORLD)
    accelerator.end_training()


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _launch_warnings(accelerator: Accelerator) -> list[str]:
    warnings = []
    if started_alone(accelerator):
        warnings.append(
            "the launch asks for several processes, but `accelerate launch` started one, as it does for MULTI_CPU "
            "and with --cpu: launch with --config_file accelerate_configs/cpu_2proc.yaml"
        )
    if lacks_its_gpu(accelerator):
        warnings.append(
            f"the launch asks for a GPU ({accelerator.mixed_precision}), but torch finds none and takes the CPU: "
            "`python -m tools.doctor` says why, or launch with --config_file accelerate_configs/cpu.yaml"
        )
    if accelerator.device.type == "cpu":
        threads, cores = torch.get_num_threads(), psutil.cpu_count(logical=False) or 1
        if hasattr(os, "sched_getaffinity"):  # not on macOS
            cores = min(cores, len(os.sched_getaffinity(0)))  # as `taskset` left them to this run
        if threads * accelerator.num_processes < cores:
            warnings.append(
                f"{threads} thread(s) in each of {accelerator.num_processes} process(es) on {cores} cores is slow: "
                "launch with --config_file accelerate_configs/cpu.yaml, or set OMP_NUM_THREADS"
            )
        elif accelerator.num_processes == 1 and threads > 1 and _threads_spin():
            all_cores, busy = psutil.cpu_count() or 1, _busy_cores()
            if threads + busy > all_cores + 0.5:
                warnings.append(
                    f"other programs keep {busy:.1f} of {all_cores} cores busy, and {threads} threads that wait "
                    "for each other are then many times slower: end those, or set GOMP_SPINCOUNT=10000"
                )
    elif accelerator.device.type == "cuda" and accelerator.mixed_precision == "bf16":
        major, minor = torch.cuda.get_device_capability(accelerator.device)
        if major < 8:
            warnings.append(
                f"bf16 was asked for, but this GPU (compute capability {major}.{minor}) has no bf16 units and "
                "emulates it slowly: launch with --config_file accelerate_configs/t4.yaml (fp16)"
            )
    return warnings


def _threads_spin() -> bool:
    """Whether a thread that waits for the others keeps its core for long, as those of GNU's OpenMP do untold."""
    return sys.platform == "linux" and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)


def _busy_cores(seconds: float = 0.2) -> float:
    """What others take, while this one sleeps."""
    return psutil.cpu_percent(seconds) / 100 * (psutil.cpu_count() or 1)


def git_commit() -> str | None:
    """The commit of the code, with "-dirty" where tracked files differ from it; None outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def hardware(accelerator: Accelerator) -> str:
    """The device's name, as users know it."""
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    if accelerator.device.type == "cpu":
        return f"CPU ({torch.get_num_threads()} threads)"
    return accelerator.device.type


def _forget_earlier_peak(device: torch.device) -> None:
    """A process may do several runs: each has a peak of its own where it can be told, on a GPU."""
    if device.type == "cuda":
        gc.collect()  # the models of an earlier run, which refer to themselves once they are prepared
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held in this run, in MiB, where the GPU's is counted; else the most that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Run:
    """One run's folder, its metrics and its tracker. Only the main process writes.

    `config` is the script's dataclass; it has `recipe`, `output_dir` and `tracker` (training/tracking.py).
    `checkpoint` and `resumed_state` are what the run goes on from, and its `state`.
    Below `output_dir`: config.json, metrics.jsonl, summary.json, checkpoints/, figures/. A folder that holds
    an earlier run is moved aside unless that run is being resumed. The folder is this run's until `finish`.

    SIGTERM and SIGINT are only noted from here on; the loop asks for them by `stop_requested`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        script: str,
        config: Any,
        checkpoint: Path | None = None,
        resumed_state: dict | None = None,
    ):
        self.accelerator, self.config, self.script = accelerator, config, script
        self.checkpoint = checkpoint
        self.git_commit = git_commit()  # now: the working tree may have changed when the run ends
        self.output_dir = Path(config.output_dir)
        self.figures_dir = self.output_dir / "figures"
        self.metrics_path = self.output_dir / "metrics.jsonl"
        self._started = time.monotonic()
        state = resumed_state or {}
        self._seconds_before = state.get("total_seconds", 0.0)
        on_main_process(accelerator, lambda: self._open_folder(checkpoint, state))
        facts = {
            "device": hardware(accelerator),
            "mixed_precision": accelerator.mixed_precision,
            "num_processes": accelerator.num_processes,
            "git_commit": self.git_commit,
        }
        tags = [facts["device"], f"precision {accelerator.mixed_precision}"]
        self.tracking = Tracking(accelerator, script, config, tags, state, **facts)
        accelerator.wait_for_everyone()
        if not (self.output_dir / "config.json").exists():  # seen from another machine
            raise UsageError(f"{self.output_dir} is not shared by the machines: name a shared --output_dir")
        stop_signals.defer()

    def _open_folder(self, checkpoint: Path | None, resumed_state: dict) -> None:
        claim_folder(self.output_dir)
        here = checkpoint is not None and checkpoint.resolve().parents[1] == self.output_dir.resolve()
        with writing(self.output_dir):
            if not here and holds_a_run(self.output_dir):
                aside = move_run_aside(self.output_dir)
                print(f"{self.output_dir} held an earlier run: moved to {aside}", flush=True)
            check_writable(self.output_dir)
            self.figures_dir.mkdir(exist_ok=True)
            if here and self.config.eval_only:
                return
            settings = json.dumps(dataclasses.asdict(self.config), indent=1, default=str)
            write_whole(self.output_dir / "config.json", redacted(settings) + "\n")
            if here:
                set_aside_after(self.output_dir, resumed_state["step"])
                if self.metrics_path.exists():
                    self._forget_metrics_after(resumed_state["step"])

    def _forget_metrics_after(self, step: int) -> None:
        """What was logged between the checkpoint and the kill will be logged again."""
        kept = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:  # the line that the kill cut short
                break
        write_whole(self.metrics_path, "".join(line + "\n" for line in kept))

    @property
    def total_seconds(self) -> float:
        """Seconds since the run was first opened, time between a kill and its resume not counted."""
        return self._seconds_before + time.monotonic() - self._started

    def state(self) -> dict:
        """What a checkpoint keeps of the run: JSON data, to be passed back as `resumed_state`."""
        return {"script": self.script, "total_seconds": self.total_seconds, **self.tracking.state()}

    def print(self, text: str) -> None:
        """Print on the main process, above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def progress_bar(self, total_steps: int, step: int) -> tqdm:
        """A bar over updates, which begins at `step`; now and then only where nobody watches a terminal."""
        hidden = not self.accelerator.is_main_process or self.config.eval_only
        interval = 0.2 if sys.stderr.isatty() else 30.0
        return tqdm(
            total=total_steps,
            initial=step,
            unit="update",
            dynamic_ncols=True,
            disable=hidden,
            mininterval=interval,
            maxinterval=max(interval, 10.0),
        )

    # -- signals ------------------------------------------------------------------------------------------

    def stop_requested(self, agree: bool) -> bool:
        """Whether a signal asks the loop to save and end.

        Several processes may see it at different updates and would wait for each other for ever, so they
        stop only where they have shared what they saw: at every update on CPUs, where that costs nothing,
        and on GPUs where the loop passes `agree=True` because it waits for the device there anyway.
        """
        if self.accelerator.num_processes == 1:
            return stop_signals.number is not None
        if not agree and self.accelerator.device.type != "cpu":
            return False
        seen = torch.tensor(float(stop_signals.number or 0), device=self.accelerator.device)
        highest = int(self.accelerator.gather(seen.reshape(1)).max())
        if highest:  # never the other way round: a signal may have come since `seen` was filled
            stop_signals.number = highest
        return highest > 0

    def exit_after_signal(self, checkpoint: Path) -> None:
        """Close the tracker and exit with 130 or 143; the checkpoint is written by now."""
        number = stop_signals.number
        assert number is not None  # the loop calls this because of it
        stop_signals.end_within(60)
        if self.accelerator.is_main_process:
            name = signal.Signals(number).name
            print(
                f"{name}: saved {checkpoint}; go on with the same recipe and --output_dir, and --resume latest: "
                "the other flags are the run's own",
                file=sys.stderr,
                flush=True,
            )
        self.tracking.finish(exit_code=128 + number)
        close_accelerator(self.accelerator)
        sys.exit(128 + number)

    def release_signals(self) -> None:
        """After the loop everything is saved: from here on a signal ends the run at once."""
        stop_signals.release()

    # -- metrics and tracking -----------------------------------------------------------------------------

    def log(self, values: dict[str, float], step: int, epoch: float) -> None:
        """Append named values to metrics.jsonl and send them to the tracker. All processes call.

        Raises UsageError, in all of them, where the line cannot be written.
        """
        line = {"step": step, "epoch": round(epoch, 6), "time": round(self.total_seconds, 3), **values}

        def write() -> None:
            with writing(self.metrics_path, training=True):
                append_line(self.metrics_path, json.dumps(line))

        on_main_process(self.accelerator, write)
        self.tracking.log(line, step)

    def log_figures(self, paths: Sequence[Path], step: int) -> None:
        """Send PNG files to the tracker, each under `figures/<its name>`."""
        self.tracking.log_figures(paths, step)

    def log_samples(
        self,
        split: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        targets: Sequence[str],
        step: int,
        n: int = 3,
    ) -> None:
        """Print n examples, evenly spaced over the outputs, and send more to the tracker as `samples/<split>`."""
        for i in range(0, len(outputs), max(len(outputs) // n, 1))[:n]:
            source, output, target = (shortened(side[i]) for side in (inputs, outputs, targets))
            self.print(f"  {source}\n    -> {output}\n    == {target}")
        self.tracking.log_samples(split, {"input": inputs, "output": outputs, "target": targets}, step)

    # -- the end ------------------------------------------------------------------------------------------

    def finish(
        self, values: dict[str, Any], train_seconds: float, model: torch.nn.Module, *, close: bool = True
    ) -> None:
        """Write summary.json, `values` first, and end tracking; without `close` the process group goes on."""
        on_main_process(self.accelerator, lambda: self._write_summary(values, train_seconds, model))
        self.tracking.finish()
        if self.accelerator.is_main_process:
            release_folder(self.output_dir)
        if close:
            close_accelerator(self.accelerator)

    def finish_untested(
        self, values: dict[str, Any], train_seconds: float, model: torch.nn.Module, *, step: int, close: bool = True
    ) -> None:
        """`finish` after `step` updates, with the figures that are drawn, where no final test is asked for."""
        self.print("the test split is not evaluated (--no_final_test)")
        self.log_figures(sorted(self.figures_dir.glob("*.png")), step)
        self.finish(values, train_seconds, model, close=close)

    def _write_summary(self, values: dict[str, Any], train_seconds: float, model: torch.nn.Module) -> None:
        packages = ("torch", "accelerate", "datasets", "tokenizers", "sacrebleu", "wandb")
        summary = {
            **values,
            "train_seconds": round(train_seconds, 2),
            "total_seconds": round(self.total_seconds, 2),
            "process_seconds": round(time.time() - psutil.Process().create_time(), 2),
            "n_parameters": sum(p.numel() for p in model.parameters()),
            "peak_memory_mb": round(peak_memory_mb(self.accelerator.device), 1),
            "device": hardware(self.accelerator),
            "mixed_precision": self.accelerator.mixed_precision,
            "num_processes": self.accelerator.num_processes,
            "versions": {"python": sys.version.split()[0], **_versions(packages)},
            "git_commit": self.git_commit,
            "command": redacted(" ".join(sys.argv)),
        }
        path = self.output_dir / "summary.json"
        with writing(path, training=True):
            write_whole(path, json.dumps(summary, indent=1) + "\n")
        self.tracking.summarise(summary)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed. Torch's names the build too: +cu128, +cpu."""
    versions = {"torch": str(torch.__version__)}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.setdefault(name, importlib.metadata.version(name))
    return versions


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over all processes; the same on each."""
    return reduce(values, reduction="sum") if accelerator.num_processes > 1 else values
