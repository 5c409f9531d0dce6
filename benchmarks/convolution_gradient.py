"""What it brings on a CPU with AMX to lay images side by side for the gradient of a convolution's weights.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.convolution_gradient

Why models/convolution.py does it, and up to which width of the maps. First single 3x3 convolutions, forwards and
backwards, then the nets of the image scripts, both in bf16; torch's way and ours take turns. A row gives the median
over the rounds, and the least and the most.
"""

import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from models import convolution
from models.convolution import HAS_AMX, images_in_a_row
from models.resnet import ResNet9
from models.speednet import SpeedNet
from models.unet import UNet
from training.cpu_memory import keep_freed_memory

LAYERS = [
    (512, 4, 500),
    (256, 3, 2000),
    (256, 7, 2000),
    (512, 8, 500),
    (256, 9, 500),
    (256, 10, 500),
    (256, 14, 250),
]
NETS: list[tuple[str, Callable[[], nn.Module], int, int]] = [
    ("SpeedNet", SpeedNet, 2000, 32),
    ("ResNet9", ResNet9, 500, 32),
    ("U-Net", lambda: UNet(width=32), 16, 128),
    ("U-Net", lambda: UNet(width=32), 16, 64),
]


class Layer(nn.Module):
    """A 3x3 convolution by images side by side, whatever the width; or by torch alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = convolution.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.conv.weight.bfloat16()
        if convolution.HAS_AMX:
            return convolution.SideBySide.apply(images.bfloat16(), weight, None)
        return F.conv2d(images.bfloat16(), weight, padding=1)


def seconds_of(net: nn.Module, images: Tensor) -> float:
    """Forwards and backwards, images (B, C, S, S)."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(images)
    outputs.float().square().mean().backward()
    return time.perf_counter() - start


def compare(net: nn.Module, images: Tensor, rounds: int) -> str:
    """The columns of a row: torch's milliseconds, ours, and how many times as fast ours is."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    images = images.to(memory_format=torch.channels_last)
    times: dict[bool, list[float]] = {False: [], True: []}
    for i in range(rounds + 1):
        for ours, seconds in times.items():
            with patch.object(convolution, "HAS_AMX", ours):
                took = seconds_of(net, images)
            if i > 0:  # the first warms up
                seconds.append(took)
    ratios = [theirs / ours for theirs, ours in zip(times[False], times[True], strict=True)]
    columns = [[1000 * t for t in times[False]], [1000 * t for t in times[True]], ratios]
    texts = []
    for values, digits in zip(columns, (1, 1, 2), strict=True):
        low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
        texts.append(f"{middle} ({low}-{high})")
    return "".join(f"{text:>26}" for text in texts)


def main(rounds: int = 7) -> None:
    """Print the two tables.

    Args:
        rounds: times that each is measured
    """
    if not HAS_AMX:
        raise SystemExit("error: this CPU has no AMX, torch's way is taken: there is nothing to compare")
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"bf16, {torch.get_num_threads()} thread(s), torch {torch.__version__}, forwards and backwards")
    heads = "".join(f"{head:>26}" for head in ("torch, ms", "side by side, ms", "times as fast"))
    print(f"{'channels, side, images':24}{'in a row':>10}{heads}")
    for channels, side, n_images in LAYERS:
        images = torch.randn(n_images, channels, side, side, requires_grad=True)
        columns = compare(Layer(channels), images, rounds)
        print(f"{f'{channels}, {side}, {n_images}':24}{images_in_a_row(side):>10}{columns}", flush=True)
    print(f"\n{'net, side, images':34}{heads}")
    for name, build, n_images, side in NETS:
        columns = compare(build(), torch.randn(n_images, 3, side, side), rounds)
        print(f"{f'{name}, {side}, {n_images}':34}{columns}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
