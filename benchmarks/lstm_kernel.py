"""Time of one bidirectional LSTM layer in bf16 on a CPU by the number of its inputs: odd ones cost most.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.lstm_kernel

Why models/lstm.py fills the inputs of its encoder up to a multiple of 8. Widths take turns; a row gives the median
over the rounds, and the least and the most.
"""

import statistics
import time

import torch
import tyro
from torch import nn

from training.cpu_memory import keep_freed_memory


def time_layer(layer: nn.LSTM, x: torch.Tensor, output_gradient: torch.Tensor) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass; x (B, T, I), output_gradient (B, T, 2H)."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = layer(x)
    between = time.perf_counter()
    outputs.backward(output_gradient)
    return between - start, time.perf_counter() - between


def main(
    hidden_size: int = 320,
    widths: tuple[int, ...] = (320, 321, 322, 328, 640, 641, 642, 648),
    batch_size: int = 360,
    length: int = 11,
    rounds: int = 9,
) -> None:
    """Print milliseconds by width.

    Args:
        hidden_size: hidden states of each direction
        widths: numbers of inputs
        batch_size: sentences
        length: tokens of each
        rounds: times that each width is measured
    """
    keep_freed_memory()
    torch.manual_seed(0)
    output_gradient = torch.randn(batch_size, length, 2 * hidden_size).bfloat16()
    layers = {
        width: (
            nn.LSTM(width, hidden_size, batch_first=True, bidirectional=True),
            torch.randn(batch_size, length, width, requires_grad=True),
        )
        for width in widths
    }
    seconds: dict[int, list[tuple[float, float]]] = {width: [] for width in widths}
    for i in range(rounds + 2):
        for width, (layer, x) in layers.items():
            took = time_layer(layer, x, output_gradient)
            if i >= 2:  # the first two warm up
                seconds[width].append(took)
    print(
        f"bidirectional LSTM, hidden size {hidden_size}, {batch_size} sentences of {length} tokens, bf16, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    print(f"inputs{'forward, ms':>24}{'backward, ms':>24}")
    for width, pairs in seconds.items():
        columns = []
        for times in zip(*pairs, strict=True):
            low, middle, high = (1000 * t for t in (min(times), statistics.median(times), max(times)))
            columns.append(f"{middle:.1f} ({low:.1f}-{high:.1f})")
        print(f"{width:6}{columns[0]:>24}{columns[1]:>24}")


if __name__ == "__main__":
    tyro.cli(main)
