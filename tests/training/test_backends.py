import os

import pytest
import torch

from training.backends import prepare_determinism, set_backends


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_on_cuda_products_are_in_tf32_and_cudnn_tries_its_algorithms():
    set_backends(torch.device("cuda"), deterministic=False)
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_determinism_takes_no_algorithm_by_trying_and_sets_cublas_first():
    prepare_determinism(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    prepare_determinism(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_backends(torch.device("cuda"), deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    set_backends(torch.device("cuda"), deterministic=False)  # another run of the process
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_precision_stays():
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    set_backends(torch.device("cpu"), deterministic=False)
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.benchmark
