"""Losses of segmentation, one number an image: their mean over the images of an update does not depend on how
those are split over processes and micro-batches.

Shape legend: B images, H height, W width, K classes. Logits (B, 1, H, W) are of foreground (class 1) against
background (class 0), logits (B, K, H, W) of K exclusive classes. Targets (B, H, W) are class numbers of any integer
type; pixels that are IGNORE count nothing. All is computed in fp32, under autocast too: sums over an image pass
fp16's largest number, 65,504, from 256x256 pixels on.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255  # the target of a pixel that is not counted
SMOOTHING = 1.0  # of `dice_loss`, in pixels

LossKind = Literal["bce", "dice", "bce+dice"]


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 4 or targets.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} are not (B, K, H, W) and (B, H, W)"
        )
    if targets.is_floating_point():
        raise ValueError(f"targets are {targets.dtype}: give integer class numbers")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the counted pixels of each image, in nats: (B,) float32.

    On the sigmoid of one output, or on the softmax of K. An image without counted pixels has 0.
    Raises ValueError where the shapes do not fit.
    """
    _check(logits, targets)
    counted = targets != IGNORE
    with torch.autocast(logits.device.type, enabled=False):
        if logits.shape[1] == 1:
            foreground = (targets == 1).float()
            losses = F.binary_cross_entropy_with_logits(logits[:, 0].float(), foreground, reduction="none")
            losses = losses.masked_fill(~counted, 0.0)
        else:
            losses = F.cross_entropy(logits.float(), targets.long(), ignore_index=IGNORE, reduction="none")
        return losses.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - soft Dice of each image: (B,) float32 of 0 to 1.

    With probabilities p and targets t (0 or 1) of the counted pixels, soft Dice is

        (2 sum p t + SMOOTHING) / (sum p^2 + sum t^2 + SMOOTHING)

    after Milletari et al. 2016 (V-Net, arXiv 1606.04797, section 3). Of one output it is that of the foreground, of
    K the mean over all classes. SMOOTHING makes it 1 for a class that is neither there nor predicted, and so for an
    image without counted pixels; a class that is not there is still pushed down where it is predicted.
    Raises ValueError where the shapes do not fit.
    """
    _check(logits, targets)
    n_outputs = logits.shape[1]
    first = 1 if n_outputs == 1 else 0
    classes = torch.arange(first, first + n_outputs, device=logits.device)
    ignored = (targets == IGNORE)[:, None]
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        p = logits.sigmoid() if n_outputs == 1 else logits.softmax(1)  # (B, K, H, W), as all below
        p = p.masked_fill(ignored, 0.0)
        t = (targets[:, None] == classes[:, None, None]).float()  # nowhere 1 where ignored
        overlap = (p * t).sum((2, 3))  # (B, K)
        total = p.square().sum((2, 3)) + t.sum((2, 3))
        return 1 - ((2 * overlap + SMOOTHING) / (total + SMOOTHING)).mean(1)


def loss_of_levels(logits: Tensor, targets: Tensor, kind: LossKind, share: float) -> Tensor:
    """The mean of the losses of L levels' logits (L, B, K, H, W), finest first: (B,) float32.

    Each level has `share` of the weight of the one before: half of it in nnU-Net (Isensee et al. 2021).
    """
    losses = torch.stack([segmentation_loss(level, targets, kind) for level in logits])
    weights = share ** torch.arange(len(losses), dtype=losses.dtype, device=losses.device)
    return weights @ losses / weights.sum()


def segmentation_loss(logits: Tensor, targets: Tensor, kind: LossKind) -> Tensor:
    """The loss of each image, (B,) float32: `cross_entropy` ("bce"), `dice_loss` ("dice"), or their sum.

    Raises ValueError for another kind, and where the shapes do not fit.
    """
    if kind == "bce":
        return cross_entropy(logits, targets)
    if kind == "dice":
        return dice_loss(logits, targets)
    if kind == "bce+dice":
        return cross_entropy(logits, targets) + dice_loss(logits, targets)
    raise ValueError(f"loss {kind!r} is not one of {', '.join(LossKind.__args__)}")
