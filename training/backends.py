"""How torch calculates on a GPU: TF32, cuDNN's choice of its algorithms, determinism."""

import os

import torch


def prepare_determinism(deterministic: bool) -> None:
    """What must be set before cuBLAS is first used: else its matrix products may differ from call to call."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_backends(device: torch.device, deterministic: bool) -> None:
    """For the whole process. On a CPU only `deterministic` changes anything.

    On CUDA, float32 matrix products are in TF32 where the GPU has it, as cuDNN's convolutions are anyway, and cuDNN
    tries its algorithms on each new shape, of which the image scripts have few. With `deterministic` it takes the
    one that repeats its numbers, and an operation that has none raises RuntimeError.
    """
    torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not deterministic
