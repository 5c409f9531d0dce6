"""Dice, IoU and pixel accuracy from the counts of pixels of each image, exact for any batch size.

Shape legend: B and N images, H height, W width, K classes. A Dice (F1) or IoU (Jaccard index) of a class that has
neither true nor predicted pixels is 1, as with scikit-learn's zero_division=1. A mean over three classes or more
leaves it out: else an image of 2 classes out of 21 had 19 of them right for nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.segmentation_losses import IGNORE


def predict_masks(logits: Tensor) -> Tensor:
    """Logits (B, 1, H, W) of the foreground or (B, K, H, W) of K classes -> class numbers (B, H, W) uint8."""
    classes = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
    return classes.to(torch.uint8)


def pixel_confusion(predicted: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """How many pixels of class i (row) were predicted as class j (column), in each image: (B, K, K) int64.

    predicted, targets (B, H, W): class numbers 0 to K - 1 of any integer type; pixels whose target is IGNORE are
    left out. Works on their device, without a host sync. Raises ValueError for differing shapes.
    """
    if predicted.shape != targets.shape or targets.ndim != 3:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and targets {tuple(targets.shape)} are not both (B, H, W)"
        )
    # Cell 0 takes the ignored pixels. bincount would ask the device for the largest cell.
    cells = (1 + targets.long() * n_classes + predicted.long()).masked_fill(targets == IGNORE, 0).flatten(1)
    counts = cells.new_zeros(len(cells), 1 + n_classes**2)
    counts.scatter_add_(1, cells, cells.new_ones(1).expand_as(cells))
    return counts[:, 1:].unflatten(1, (n_classes, n_classes))


def _occurs(counts: Tensor) -> Tensor:
    """Counts (..., K, K) -> whether a class has true or predicted pixels, (..., K) bool."""
    return counts.sum(-1) + counts.sum(-2) > 0


def _dice_and_iou(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (..., K, K) -> Dice and IoU of each class, (..., K) float32."""
    both = counts.diagonal(dim1=-2, dim2=-1)
    true_and_predicted = counts.sum(-1) + counts.sum(-2)  # pixels that are both stand twice in it
    either = true_and_predicted - both
    dice = torch.where(either > 0, 2 * both / true_and_predicted.clamp(min=1), 1.0)
    iou = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    return dice, iou


def _over_classes(scores: Tensor, counts: Tensor) -> Tensor:
    """Scores (..., K) -> that of the foreground, class 1, of two classes, else the mean of those that occur: (...).

    1 where no class occurs: no pixel is counted.
    """
    if scores.shape[-1] == 2:
        return scores[..., 1]
    occurs = _occurs(counts)
    mean = torch.where(occurs, scores, 0.0).sum(-1) / occurs.sum(-1).clamp(min=1)
    return torch.where(occurs.any(-1), mean, 1.0)


def dice_of_images(counts: Tensor) -> Tensor:
    """Counts (N, K, K) of `pixel_confusion` -> Dice of each image, (N,) float32.

    Of the foreground (class 1) where K is 2, else the mean over the classes that the image has or was given.
    """
    return _over_classes(_dice_and_iou(counts)[0], counts)


def segmentation_scores(counts: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Scores of 0 to 1 of a data set from the counts (N, K, K) of its images, as `pixel_confusion` gives them.

    `dice`, `iou`: of all pixels of the data set together; where K is 2 of the foreground (class 1), else the mean
    over the classes that occur. `dice_per_image`, `iou_per_image`: the same of each image, then the mean over
    images. `pixel_accuracy`: the share of counted pixels that are predicted right. `dice_<name>`, `iou_<name>`: of
    one class, over the data set.

    Raises ValueError where there are no images, or names that do not fit the counts.
    """
    n_classes = len(class_names)
    if len(counts) == 0 or counts.shape[1:] != (n_classes, n_classes):
        raise ValueError(f"counts {tuple(counts.shape)} are not (N, K, K) of images with {n_classes} classes")
    total = counts.sum(0)
    dice, iou = _dice_and_iou(total)
    dice_per_image, iou_per_image = (_over_classes(score, counts).mean() for score in _dice_and_iou(counts))
    n_right, n_pixels = int(total.trace()), int(total.sum())
    return {
        "dice": float(_over_classes(dice, total)),
        "iou": float(_over_classes(iou, total)),
        "dice_per_image": float(dice_per_image),
        "iou_per_image": float(iou_per_image),
        "pixel_accuracy": n_right / n_pixels if n_pixels else 1.0,
        **{f"dice_{name}": score for name, score in zip(class_names, dice.tolist(), strict=True)},
        **{f"iou_{name}": score for name, score in zip(class_names, iou.tolist(), strict=True)},
    }
