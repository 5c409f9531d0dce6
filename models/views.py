"""Test-time augmentation: the mean of the logits over several views of an image."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Views = Literal["one", "mirror", "six"]


def logits_over_views(model: Callable[[Tensor], Tensor], images: Tensor, views: Views) -> Tensor:
    """Images (B, C, S, S) -> logits (B, K).

    "one": the image as it is. "mirror": the mean with its mirror image. "six": the mean of that with the mean
    over two views, each mirrored too, that are shifted by one pixel up-left and down-right, with reflected
    borders (cifar10-airbench, arXiv 2404.00498, section 3.5).
    """
    if views == "one":
        return model(images)
    if views == "mirror":
        return (model(images) + model(images.flip(-1))) / 2
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    up_left, down_right = padded[..., 2:, 2:], padded[..., :-2, :-2]
    shifted = logits_over_views(model, up_left, "mirror") + logits_over_views(model, down_right, "mirror")
    return logits_over_views(model, images, "mirror") / 2 + shifted / 4
