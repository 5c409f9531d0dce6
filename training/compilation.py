"""torch.compile, where this machine can: what it lacks is said before training begins."""

import time

import torch

from training.errors import UsageError


def compile_model(model: torch.nn.Module, device: torch.device, dynamic: bool | None = None) -> None:
    """Have the model compiled at its first call on `device`; `dynamic` as torch.compile takes it.

    Compiling needs a C++ compiler on a CPU, Triton and a C compiler on a GPU. A tiny function is compiled first,
    by the same way. Raises UsageError where that fails.
    """
    try:
        _compile_something(device)
    except (
        Exception
    ) as error:  # whatever it is, the model would fail likewise, but in the middle of its first update
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler"
        raise UsageError(
            f"--compile needs {needs}, and a trial failed: {_reason(error)}; install what is missing "
            "(Debian and Ubuntu: apt install g++ python3-dev; CXX names another compiler), or leave --compile out"
        ) from error
    model.compile(dynamic=dynamic)


def _compile_something(device: torch.device) -> None:
    new = float(time.time_ns() % 10**9)  # a number that was never compiled: else the cache would answer

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x + new).relu()

    torch.compile(function)(torch.zeros(64, device=device))


def _reason(error: BaseException) -> str:
    """The first telling line of what is often a page: the compiler's own complaint if there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    complaints = [line for line in lines if "error:" in line or "not found" in line or "No such file" in line]
    return (complaints or lines or [type(error).__name__])[0][:200].rstrip(".")
