"""Pixels as numbers: their statistics over a data set, and normalisation by them."""

import torch
from torch import Tensor

CHUNK = 4096  # images: what is computed once over all of them shall not need their memory again in int64


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixels - mean) / std per channel, bit for bit what `Augmenter.batch` gives without augmentation.

    `images` (B, C, H, W) uint8; `mean` and `std` (C,) in pixel units, 0 to 255. Returns (B, C, H, W) float32 in
    channels_last memory format.
    """
    n, channels, height, width = images.shape
    mean, std = along_rows(mean, std, width, images.device)
    rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels)
    return rows.float().sub_(mean).div_(std).view(n, height, width, channels).permute(0, 3, 1, 2)


def channel_statistics(images: Tensor) -> dict[str, Tensor]:
    """Exact statistics of `images` (N, C, H, W) uint8, on the CPU.

    `count` () int64 is N, `shape` (3,) int64 is C, H, W; `min`, `max`, `mean`, `std` and `variance` (C,) float64
    are over the pixels of each channel, these in 0 to 1. The variance is that of the population.
    """
    channels = images.shape[1]
    histogram = torch.zeros(channels, 256, dtype=torch.int64)
    for chunk in images.split(CHUNK):
        for channel in range(channels):
            histogram[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256).cpu()
    levels = torch.arange(256, dtype=torch.float64) / 255
    weights = histogram / histogram.sum(1, keepdim=True, dtype=torch.float64)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]).square()).sum(1)
    occurs = histogram > 0
    return {
        "count": torch.tensor(len(images)),
        "shape": torch.tensor(images.shape[1:]),
        "min": torch.stack([levels[row].min() for row in occurs]),
        "max": torch.stack([levels[row].max() for row in occurs]),
        "mean": mean,
        "std": variance.sqrt(),
        "variance": variance,
    }


def along_rows(mean: Tensor, std: Tensor, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Repeated to (W * C,): an operation whose inner dimension were the C channels would not vectorise."""
    mean, std = (t.to(device, torch.float32).repeat(width) for t in (mean, std))
    return mean, std
