"""Batch norm over the images of all processes, so that several of them train as one would on the whole batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """A tensor's sum over all processes, which each of them goes on with: so the gradients are summed too.

    Torch's own, in torch.distributed.nn, is deprecated in 2.13; what is to replace it has no backward pass in 2.8.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class ProcessBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with statistics over all processes: (B, C, H, W) -> (B, C, H, W).

    Torch's SyncBatchNorm does not run on a CPU, and on a GPU it has the host wait in each layer. Processes may hold
    different numbers of images.
    """

    # nn.BatchNorm2d can do without these, this class cannot.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        pixels = x.float()
        count = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)
        totals = _SumOverProcesses.apply(torch.cat([pixels.sum((0, 2, 3)), count]))
        n = totals[-1].detach()
        mean = totals[:-1] / n
        # Around the mean, in a second pass: the mean of squares less the square of the mean loses digits.
        centred = pixels - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def has_norms(model: nn.Module) -> bool:
    """Whether layers of `model` take out the scale of what they are given."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return any(isinstance(module, norms) for module in model.modules())


def synchronize_batch_norm(model: nn.Module) -> None:
    """Make every BatchNorm2d below `model` share its statistics among the processes; tensors and names stay."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = ProcessBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                shared.weight.requires_grad_(child.weight.requires_grad)
                shared.bias.requires_grad_(child.bias.requires_grad)
                setattr(parent, name, shared)
