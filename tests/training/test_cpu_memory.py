import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TOUCH_40_TIMES = """
import resource, torch
from training.cpu_memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
faults = []
for _ in range(40):
    torch.ones(50_000_000, dtype=torch.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[19])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_freed_memory_is_used_again_without_page_faults():
    """In a process of its own: the setting lasts as long as the process."""
    faults = {}
    for keep in (False, True):
        command = [sys.executable, "-c", TOUCH_40_TIMES.format(keep=keep)]
        faults[keep] = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert faults[False] > 20 * 1000  # 50 MB are 12,207 pages of 4 KiB
    assert faults[True] < 1000  # the first times the heap may still find its place


SEE_MANY_SHAPES = """
import psutil, torch
from training.cpu_memory import keep_few_kernels
if {few}:
    keep_few_kernels(8)
torch.set_num_threads(1)
filters = torch.randn(64, 64, 3, 3)
used = []
for height in range(8, 300):
    torch.nn.functional.conv2d(torch.randn(1, 64, height, 8), filters)
    used.append(psutil.Process().memory_info().rss // 2**20)
print(used[-1] - used[8])
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="kernels are kept by oneDNN")
def test_kernels_of_shapes_long_past_are_let_go(monkeypatch):
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # a run of this process sets them
        monkeypatch.delenv(variable, raising=False)
    grown = {}
    for few in (False, True):
        command = [sys.executable, "-c", SEE_MANY_SHAPES.format(few=few)]
        grown[few] = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert grown[False] > 2 * grown[True]
