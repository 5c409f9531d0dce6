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


HOLD_AFTER_DATA_AND_TRAINING = """
import psutil, torch
from dataclasses import dataclass
from training.run import open_accelerator
from training.setup import prepare_training

@dataclass
class Config:
    ema_decay: float = 0.0
    compile: bool = False

def build_optimizer(model, config, mixed_precision):
    return torch.optim.SGD(model.parameters())

def megabytes_left_of_a_block():
    before = psutil.Process().memory_info().rss
    torch.ones(300_000_000, dtype=torch.uint8)
    return (psutil.Process().memory_info().rss - before) / 1e6

accelerator = open_accelerator()
print(megabytes_left_of_a_block())
prepare_training(accelerator, torch.nn.Linear(2, 2), build_optimizer, Config(), None)
print(megabytes_left_of_a_block())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_what_the_data_took_is_given_back_and_what_training_takes_is_kept():
    command = [sys.executable, "-c", HOLD_AFTER_DATA_AND_TRAINING]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    of_data, of_training = map(float, shown.split())
    assert of_data < 30 and of_training > 270


SEE_MANY_SHAPES_TWICE = """
import torch
from training.cpu_memory import keep_kernels
if {keep}:
    keep_kernels()
torch.set_num_threads(1)
filters = torch.randn(8, 8, 3, 3)
for i in range(2):
    print("pass", flush=True)
    for height in range(8, 8 + 1100):
        torch.nn.functional.conv2d(torch.randn(1, 8, height, 8), filters)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="kernels are kept by oneDNN")
def test_a_kernel_is_made_once_for_more_shapes_than_onednn_keeps_by_default(monkeypatch):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)  # a run of this process sets it
    monkeypatch.setenv("ONEDNN_VERBOSE", "profile_create")
    made = {}
    for keep in (False, True):
        command = [sys.executable, "-c", SEE_MANY_SHAPES_TWICE.format(keep=keep)]
        log = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        _, first, second = log.split("pass\n")
        made[keep] = [passed.count("create:cache_miss") for passed in (first, second)]
    assert made[False][0] >= 1100 and made[False][1] >= 1100
    assert made[True][0] >= 1100 and made[True][1] == 0
