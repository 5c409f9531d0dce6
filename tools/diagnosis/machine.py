"""What a run would find on this machine: devices, memory, disk, versions, a login at W&B."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from data.memory import total_memory
from training.cores import usable_cores

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can see."""

    name: str
    capability: tuple[int, int]  # NVIDIA's compute capability
    memory: int  # bytes
    has_kernels: bool = True  # whether torch's build has code for it

    @property
    def multiplies_bf16(self) -> bool:
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Machine:
    """What decides how to launch, and what may be in the way of it."""

    gpus: tuple[Gpu, ...]
    driver_shows: tuple[str, ...]  # names of the NVIDIA GPUs that the driver has, seen by torch or not
    torch_version: str
    cuda_of_torch: str | None  # the CUDA that torch is built for; None of a CPU build
    cpu: str
    cores: int  # physical ones that this process may use
    threads_asked: int | None  # OMP_NUM_THREADS
    cpu_multiplies_bf16: bool
    memory: int  # bytes
    memory_available: int  # bytes


def this_machine() -> Machine:
    """Look at the machine that this process runs on."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())) if torch.cuda.is_available() else (),
        driver_shows=_gpus_of_the_driver(),
        torch_version=torch.__version__,
        cuda_of_torch=torch.version.cuda or torch.version.hip,
        cpu=_first_match(Path("/proc/cpuinfo"), r"model name\s*: (.+)") or "unknown",
        cores=usable_cores(),
        threads_asked=int(threads) if threads.isdigit() else None,
        cpu_multiplies_bf16=bool(_first_match(Path("/proc/cpuinfo"), r"\b(avx512_bf16|amx_bf16)\b")),
        memory=total_memory(),
        memory_available=min(total_memory(), psutil.virtual_memory().available),
    )


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    return Gpu(properties.name, capability, properties.total_memory, _has_kernels(capability))


def _has_kernels(capability: tuple[int, int]) -> bool:
    """Whether torch's build runs on it: by code of the same major version, or by PTX, which newer GPUs compile."""
    architectures = torch.cuda.get_arch_list()  # sm_75, sm_80, compute_120, ..; of ROCm gfx..
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
        if not match:
            return True  # not NVIDIA's
        built_for = (int(match[2]), int(match[3]))
        if built_for <= capability and (match[1] == "compute" or built_for[0] == capability[0]):
            return True
    return False


def _gpus_of_the_driver() -> tuple[str, ...]:
    """Names of NVIDIA's GPUs, whether torch can use them or not."""
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
        except (OSError, subprocess.TimeoutExpired):
            listed = ""
        names = re.findall(r"GPU \d+: (.+?) \(UUID", listed)
        if names:
            return tuple(names)
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return tuple(_first_match(file, r"Model:\s*(.+)") or "an NVIDIA GPU" for file in files)


def _first_match(path: Path, pattern: str) -> str:
    try:
        match = re.search(pattern, path.read_text(errors="replace"))
    except OSError:
        return ""
    return match[1].strip() if match else ""


# -- what else a run needs --------------------------------------------------------------------------------


def compiler() -> str | None:
    """What `--compile` would call, if it is installed: a C++ compiler, on a GPU a C compiler."""
    names = ("gcc", "clang", "cc") if torch.cuda.is_available() else ("g++", "clang++")
    return next((found for name in (os.environ.get("CXX"), *names) if name and (found := shutil.which(name))), None)


def unfit_packages(root: Path = ROOT) -> list[str]:
    """What requirements.txt asks for and this environment has not: "torch 2.5.1, but torch>=2.8,<3 is needed"."""
    unfit = []
    for line in (root / "requirements.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            unfit.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} is of version {version}, but {requirement} is needed")
    return unfit


def free_bytes(folder: Path) -> int:
    """Of the disk on which the folder lies or would be made. Raises OSError where it may not be written."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{existing} may not be written")
    return shutil.disk_usage(existing).free


def size_of(folder: Path) -> int:
    """Bytes of all files below it."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path) and os.path.exists(path):
                total += os.path.getsize(path)
    return total
