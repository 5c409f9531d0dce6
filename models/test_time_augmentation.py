"""Test-time augmentation: the mean of the logits over several views of an image, of its class or of its pixels."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Views = Literal["one", "mirror", "six", "six-unsure"]
PixelViews = Literal["one", "mirror", "scales"]
SCALES = (7 / 8, 1, 9 / 8)
UNSURE_SHARE = 0.25  # of a split, that "six-unsure" looks at from six sides


def logits_over_views(model: Callable[[Tensor], Tensor], images: Tensor, views: Views) -> Tensor:
    """Images (B, C, S, S) -> logits (B, K).

    "one": the image as it is. "mirror": the mean with its mirror image. "six": the mean of that with the mean
    over two views, each mirrored too, that are shifted by one pixel up-left and down-right, with reflected
    borders (cifar10-airbench, arXiv 2404.00498, section 3.5). "six-unsure" is about a whole split (`least_sure`);
    of images by themselves it is "six".
    """
    if views == "one":
        return model(images)
    if views == "mirror":
        return (model(images) + model(images.flip(-1))) / 2
    up_left, down_right = shifted_views(images)
    shifted = logits_over_views(model, up_left, "mirror") + logits_over_views(model, down_right, "mirror")
    return logits_over_views(model, images, "mirror") / 2 + shifted / 4


def least_sure(log_probabilities: Tensor) -> Tensor:
    """Of images with log_probabilities (N, K), the numbers of the quarter that is least sure: (n,), n >= 1.

    Sure is who gives one class a high probability.
    """
    n_unsure = max(1, round(UNSURE_SHARE * len(log_probabilities)))
    return log_probabilities.amax(1).topk(n_unsure, largest=False).indices


def shifted_views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, S, S), shifted by one pixel up-left and down-right, with reflected borders."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    return padded[..., 2:, 2:], padded[..., :-2, :-2]


def pixel_logits_over_views(model: Callable[[Tensor], Tensor], images: Tensor, views: PixelViews) -> Tensor:
    """Images (B, C, H, W) -> logits (B, K, H, W) of each pixel.

    "one": the image as it is. "mirror": the mean with those of its mirror image, mirrored back. "scales": the mean
    of that over the image at 7/8, 1 and 9/8 of its size, each resized back (as Chen et al. 2018, arXiv 1802.02611,
    section 4.1, average over scales and mirror images).
    """
    if views == "one":
        return model(images)
    if views == "mirror":
        return (model(images) + model(images.flip(-1)).flip(-1)) / 2
    size = images.shape[2:]
    total = torch.zeros((), device=images.device)
    for scale in SCALES:
        scaled = F.interpolate(images, [round(scale * side) for side in size], mode="bilinear", antialias=True)
        logits = pixel_logits_over_views(model, scaled, "mirror").float()
        total = total + F.interpolate(logits, size, mode="bilinear", antialias=True)
    return total / len(SCALES)
