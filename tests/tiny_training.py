"""A training run of a net with everything that has a state, whose data come from the global generators."""

import random

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from training.lr_finder import LRRangeTest, lr_range_test


class Net(nn.Module):
    """Everything that has a state: dropout, running statistics, a non-persistent buffer, a tied weight."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, x):  # (B, 6) -> (B, 6)
        self.calls += 1
        return self.last(self.drop(self.norm(self.first(x)).relu())) + 0.01 * self.calls


def seed_all() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class TinyRun:
    """A training run whose data come from the three random generators."""

    def __init__(self, scaler: torch.amp.GradScaler | None = None):
        seed_all()
        self.accelerator = Accelerator(cpu=True)
        self.accelerator.scaler = scaler
        net = Net()
        groups = [{"params": [net.first.weight]}, {"params": [net.first.bias, *net.norm.parameters()]}]
        optimizer = torch.optim.AdamW(groups, lr=0.02)
        self.model, self.optimizer = self.accelerator.prepare(net, optimizer)

    def update(self, lr: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x = torch.randn(8, 6) * random.random() + torch.from_numpy(np.random.rand(8, 6)).float()
        loss = F.mse_loss(self.model(x), x)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def train(self, n_updates: int) -> list[float]:
        return [self.update(0.02).item() for _ in range(n_updates)]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def range_test(self, **options) -> LRRangeTest:
        update = options.pop("update", self.update)
        state = {"accelerator": self.accelerator, "model": self.model, "optimizer": self.optimizer}
        return lr_range_test(update, **state, **{"n_steps": 30, **options})


def scaled_loss() -> torch.amp.GradScaler:
    """A scaler whose scale grows at every third update, so that a test of 30 updates changes it."""
    return torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
