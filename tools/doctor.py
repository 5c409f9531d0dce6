"""Say what is on this machine, how to launch on it, what the recipes will take, and what is in the way.

    python -m tools.doctor
    python -m tools.doctor accelerate_configs/bf16.yaml      # would this launch get what it asks for?

It ends with exit code 2, and a line with the mend for each, where something is in the way: a CPU's build of torch
beside a GPU, bf16 asked of a GPU that has none, threads that are left idle, a disk that is full.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from tyro.conf import Positional

from data.cache import cache_dir
from data.errors import DataError
from tools.diagnosis.estimates import Estimate, Rate, estimates, keep_rates, measure_rate
from tools.diagnosis.launches import FOLDER, Launch, not_as_asked, suitable, unusable_gpus
from tools.diagnosis.machine import Machine, compiler, free_bytes, size_of, this_machine, unfit_packages
from tools.record import cpu_name
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.tracking import logged_in_to_wandb

NEEDED = 2**30  # bytes that a disk should have: a data set, or the checkpoints and figures of some runs
PACKAGES = ("torch", "accelerate", "datasets", "tokenizers", "wandb", "numpy")
PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}


def what_is_here(machine: Machine, output_dir: Path) -> list[tuple[str, str]]:
    """Headings and a line of each, for a terminal."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    build = f"built for CUDA {machine.cuda_of_torch}" if machine.cuda_of_torch else "built for CPUs"
    units = ", multiplies bf16" if machine.cpu_multiplies_bf16 else ", without bf16 units"
    rows = [("GPU", _gpu_line(gpu)) for gpu in machine.gpus] or [("GPU", "none that torch can use")]
    rows += [
        ("CPU", f"{machine.cpu}, {machine.cores} cores{units}"),
        ("memory", f"{_gib(machine.memory)}, {_gib(machine.memory_available)} available"),
        ("runs", f"{output_dir}, {_free(output_dir)}"),
        ("cache", _cache_line()),
        ("versions", f"Python {platform.python_version()}, {versions}; torch is {build}"),
        ("--compile", f"{compiler()} is there" if compiler() else "not to be had: no compiler is installed"),
        ("W&B", _wandb_line()),
    ]
    return rows


def _gpu_line(gpu) -> str:
    bf16 = "bf16 and fp16" if gpu.multiplies_bf16 else "fp16, no bf16"
    return f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {_gib(gpu.memory)}, {bf16}"


def _wandb_line() -> str:
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        return f"{mode}, as WANDB_MODE says"
    return "logged in" if logged_in_to_wandb() else "not logged in: runs stay offline; `wandb login` mends it"


def _cache_line() -> str:
    try:
        folder = cache_dir()
    except DataError as error:
        return str(error)
    return f"{folder}, {_gib(size_of(folder))} used, {_free(folder)}"


def _free(folder: Path) -> str:
    try:
        return f"{_gib(free_bytes(folder))} free"
    except OSError as error:
        return f"cannot be written: {error}"


def what_is_in_the_way(machine: Machine, launch: Launch, output_dir: Path) -> list[str]:
    """A sentence for each obstacle, with the mend."""
    problems = [f"{text}: pip install -r requirements.txt" for text in unfit_packages()]
    problems += unusable_gpus(machine) + not_as_asked(launch, machine)
    problems += _disk_problem(output_dir, "name another --output_dir for runs")
    try:
        problems += _disk_problem(cache_dir(), "empty it, or set ONECYCLE_CACHE to another folder")
    except DataError as error:
        problems.append(str(error))
    return problems


def _disk_problem(folder: Path, mend: str) -> list[str]:
    try:
        free = free_bytes(folder)
    except OSError as error:
        return [f"{folder} cannot be written ({error}): {mend}"]
    return [f"{folder} has only {free >> 20} MiB left on its disk: {mend}"] if free < NEEDED else []


def estimate_table(found: Sequence[Estimate], memory: int) -> str:
    """A row a recipe: what it took where it is recorded, and what it may take here."""
    rows = [
        (
            estimate.script.removesuffix(".py"),
            estimate.recipe,
            _duration(estimate.seconds_here) if estimate.seconds_here else "-",
            f"{estimate.memory_mb / 2**10:.1f} GiB"
            + (" (too much)" if estimate.memory_mb * 2**20 > memory else ""),
            _duration(estimate.seconds),
            estimate.on,
        )
        for estimate in found
    ]
    return tabulate(
        rows, headers=("script", "recipe", "here, about", "memory", "recorded", "on"), disable_numparse=True
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


def rates_here(machine: Machine, precisions: Sequence[str], threads: Sequence[int]) -> list[Rate]:
    """How fast the device that a run would take trains a small block, in each precision."""
    if machine.gpus:
        device, name = torch.device("cuda"), machine.gpus[0].name
        return [measure_rate(device, precision, name) for precision in precisions]
    device = torch.device("cpu")
    return [measure_rate(device, precision, cpu_name(), n) for n in threads for precision in precisions]


def main(config_file: Positional[PathFlag] = "", output_dir: PathFlag = "runs", keep_rate: bool = False) -> None:
    """Say what is on this machine, how to launch on it, what the recipes will take, and what is in the way.

    Args:
        config_file: a launch file to check; none: the one that suits this machine
        output_dir: folder in which runs will be written
        keep_rate: write how fast this machine trains a block into results/device-rates.json: for one that
            makes records
    """
    machine = this_machine()
    name, flags = suitable(machine)
    suits = f"{FOLDER}/{name}.yaml"
    try:
        launch = Launch.read(Path(config_file or suits))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(tabulate(what_is_here(machine, Path(output_dir)), tablefmt="plain"))
    command = " ".join(["accelerate launch -q --config_file", suits, *flags, "train_translation.py demo"])
    print(f"\nLaunch with {suits}:\n\n    {command}\n")

    rate, *_ = rates_here(machine, [Launch.read(Path(suits)).mixed_precision], [machine.cores])
    memory = machine.gpus[0].memory if machine.gpus else machine.memory
    print(estimate_table(estimates(rate), memory))
    print(
        f"\nEstimates, from the records in results/ and the speed at which a small block is trained here "
        f"({rate.tflops:g} TFLOP/s, {PRECISIONS[rate.mixed_precision]}).\n"
        "A dash where the rate of the record's machine is not known. "
        "Downloads, and what else the machine does, come on top."
    )
    if keep_rate:
        precisions = ("no", "fp16", "bf16") if machine.gpus else ("no", "bf16")
        path = keep_rates(rates_here(machine, precisions, sorted({1, machine.cores})))
        print(f"rates kept in {path}")
    problems = what_is_in_the_way(machine, launch, Path(output_dir))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(2)
    print(f"\nNothing is in the way of {launch.name}.")


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main), stdout_is_the_result=True)
