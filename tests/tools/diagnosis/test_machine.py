import os

import pytest
import torch

from tools.diagnosis import machine
from tools.diagnosis.machine import size_of, this_machine

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 5), CUDA_13, True),  # T4
        ((6, 0), CUDA_13, False),  # P100
        ((7, 0), CUDA_13, False),  # V100: of the same major version, but older than the code
        ((8, 9), CUDA_13, True),  # L4, by the code for 8.6
        ((13, 0), CUDA_13, True),  # a GPU of the future, by PTX
        ((13, 0), CUDA_13[:-1], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), ["gfx942"], True),  # not NVIDIA's: torch knows
    ],
)
def test_a_gpu_is_run_by_code_of_its_own_major_version_or_by_ptx(monkeypatch, capability, architectures, runs):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    assert machine._has_kernels(capability) == runs


def test_gpus_are_known_by_the_driver_where_torch_sees_none(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "GPU 0: Tesla T4 (UUID: GPU-1)"\necho "GPU 1: NVIDIA L4 (UUID: GPU-2)"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert this_machine().driver_shows == ("Tesla T4", "NVIDIA L4")
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert machine._gpus_of_the_driver() == ()


def test_threads_that_are_asked_for_are_a_number(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert this_machine().threads_asked == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # of nested regions: OpenMP knows
    assert this_machine().threads_asked is None


def test_the_size_of_a_folder_counts_no_file_twice(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "a" / "file")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    assert size_of(tmp_path) == 1000
    assert size_of(tmp_path / "nothing") == 0
