"""Which YAML of accelerate_configs/ suits a machine, and what of a launch would not go as it asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import is_deepspeed_available

from tools.diagnosis.machine import Gpu, Machine
from training.errors import UsageError

FOLDER = "accelerate_configs"
SHARDED = {"FSDP": "fsdp.yaml", "DEEPSPEED": "deepspeed_zero2.yaml"}


@dataclass(frozen=True)
class Launch:
    """What a launch file asks for."""

    name: str  # of the file, as one types it
    kind: str  # Accelerate's distributed_type
    num_processes: int
    num_machines: int
    mixed_precision: str  # no, fp16 or bf16
    use_cpu: bool

    @classmethod
    def read(cls, path: Path) -> "Launch":
        """Raises UsageError where the file is not there or is no launch file."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"{path} cannot be read ({error}): name a file of {FOLDER}/") from error
        if not isinstance(values, Mapping):
            raise UsageError(f"{path} is no launch file: name one of {FOLDER}/")
        return cls(
            name=str(path),
            kind=_word(values.get("distributed_type", "NO")),
            num_processes=int(values.get("num_processes", 1)),
            num_machines=int(values.get("num_machines", 1)),
            mixed_precision=_word(values.get("mixed_precision", "no")).lower(),
            use_cpu=bool(values.get("use_cpu", False)),
        )


def _word(value: Any) -> str:
    return "no" if value is False else str(value)  # a bare `no` is a boolean in YAML


def suitable(machine: Machine) -> tuple[str, list[str]]:
    """The name of the YAML that makes the most of the machine, and flags of `accelerate launch` to go with it."""
    usable = [gpu for gpu in machine.gpus if gpu.has_kernels]
    if not usable:
        return ("cpu_bf16" if machine.cpu_multiplies_bf16 else "cpu"), []
    bf16 = all(gpu.multiplies_bf16 for gpu in usable)
    if len(usable) == 1:
        return ("bf16" if bf16 else "t4"), []
    return ("multi_gpu_bf16" if bf16 else "multi_t4"), ["--num_processes", str(len(usable))]


def unusable_gpus(machine: Machine) -> list[str]:
    """GPUs that are there and that a run would leave idle, each with the mend."""
    if machine.driver_shows and machine.cuda_of_torch is None:
        return [
            f"torch {machine.torch_version} is a build for CPUs, beside {_list(machine.driver_shows)}: "
            "pip uninstall -y torch, then pip install torch"
        ]
    if machine.driver_shows and not machine.gpus:
        return [
            f"torch {machine.torch_version}, built for CUDA {machine.cuda_of_torch}, cannot use "
            f"{_list(machine.driver_shows)}: unset CUDA_VISIBLE_DEVICES if it is set, else update the driver or "
            "install a torch that is built for an older CUDA"
        ]
    return [
        f"torch {machine.torch_version} has no code for {_named(gpu)}: take another GPU, or a torch that is built "
        "for an older CUDA"
        for gpu in machine.gpus
        if not gpu.has_kernels
    ]


def not_as_asked(launch: Launch, machine: Machine) -> list[str]:
    """What the launch asks for and would not get on this machine, each with the mend."""
    name, flags = suitable(machine)
    mend = " ".join([f"launch with --config_file {FOLDER}/{name}.yaml", *flags])
    on_cpu = launch.use_cpu or not machine.gpus
    if launch.kind == "MULTI_CPU":
        return [
            f"{launch.name} asks for MULTI_CPU, of which Accelerate starts one process only: launch with "
            f"--config_file {FOLDER}/cpu_2proc.yaml"
        ]
    if launch.kind in SHARDED and on_cpu:
        return [f"{launch.name} shards a model, which on a CPU nothing does: {mend}"]
    if launch.kind == "DEEPSPEED" and not is_deepspeed_available():
        return [f"{launch.name} needs DeepSpeed: pip install deepspeed"]
    problems = []
    of_this_machine = launch.num_processes // launch.num_machines
    if not launch.use_cpu and launch.kind != "NO" and of_this_machine > len(machine.gpus):
        problems.append(
            f"{launch.name} starts {of_this_machine} processes, but torch sees {len(machine.gpus)} GPUs: {mend}"
        )
    if launch.mixed_precision == "fp16" and on_cpu:
        problems.append(f"{launch.name} asks for fp16, which CPUs have not: {mend}")
    if launch.mixed_precision == "bf16" and not on_cpu:
        without = [gpu for gpu in machine.gpus if not gpu.multiplies_bf16]
        problems += [f"{launch.name} asks for bf16, which {_named(gpu)} has not: {mend}" for gpu in without[:1]]
    if launch.mixed_precision == "bf16" and on_cpu and not machine.cpu_multiplies_bf16:
        problems.append(f"{launch.name} asks for bf16, which this CPU only emulates, slowly: {mend}")
    return problems + _too_few_threads(launch, machine, on_cpu)


def _too_few_threads(launch: Launch, machine: Machine, on_cpu: bool) -> list[str]:
    asked = machine.threads_asked
    processes = launch.num_processes // launch.num_machines
    if not on_cpu or asked is None or asked * processes >= machine.cores:
        return []
    return [
        f"OMP_NUM_THREADS={asked} leaves {machine.cores - asked * processes} of {machine.cores} cores idle: "
        "unset OMP_NUM_THREADS"
    ]


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )


def _named(gpu: Gpu) -> str:
    return f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]})"
