from types import ModuleType

import pytest
import torch

from benchmarks.host_time import TINY, count_update
from train_cifar import RECIPES


def script(waits: bool) -> ModuleType:
    """One whose update multiplies, averages three tensors at once, and reads a value where it `waits`."""
    module = ModuleType("script")
    x, averages, values = torch.ones(4), [torch.ones(2)] * 3, [torch.zeros(2)] * 3

    def train_update() -> None:
        (x * x).view(2, 2).mul_(x.view(2, 2))
        torch._foreach_lerp_(averages, values, 0.5)
        if waits:
            x[0].item()

    def main(config) -> None:
        assert config.log_every == 0 and config.seed == 5
        while True:
            module.train_update()

    module.RECIPES, module.train_update, module.main = RECIPES, train_update, main
    return module


@pytest.mark.parametrize("waits", [False, True])
def test_kernels_and_waits_of_an_update_are_counted(waits):
    counts = count_update(script(waits), "demo", {"seed": 5})
    assert dict(counts.most_frequent) == {"aten::mul": 1, "aten::mul_": 1, "aten::_foreach_lerp_": 1}
    assert (counts.kernels, counts.waits) == (3, int(waits))


@pytest.mark.training
@pytest.mark.parametrize("name", ["translation, Transformer, Muon", "U-Net, Muon", "VAE, AdamW"])
def test_an_update_waits_for_nothing(fresh_accelerate, name):
    counts = count_update(*TINY[name])
    assert counts.waits == 0 < counts.kernels
