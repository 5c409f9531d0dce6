"""One picture of what runs leave behind: digits under wrong labels, masks, and the attention of a translation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from figures.curves import new_figure, save_png
from figures.segmentation import overlay_masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 9.0, 4.3  # inches; README shows it at its own size
N_COLORS = 128  # of the PNG's palette, which makes it a third as large
GAP = 3  # pixels of white between pictures
SMALLEST = 96  # pixels along a side, from which contours look thin


@dataclass(frozen=True)
class AttendedTranslation:
    """A sentence, its translation, and `weights` (T, S): how much each target token looked at each source token."""

    weights: np.ndarray
    source_tokens: Sequence[str]
    target_tokens: Sequence[str]


@dataclass(frozen=True)
class RelabelledImages:
    """`images` (R, C, S, S) uint8 and `outputs` (R, K, C, S, S) in 0..1: each image's latent under K labels."""

    images: Tensor
    outputs: Tensor
    labels: Sequence[str]


@dataclass(frozen=True)
class SegmentedPictures:
    """`pictures` (P, 3, S, S) uint8, and masks (P, S, S) uint8 of their classes, true and predicted."""

    pictures: Tensor
    true_masks: Tensor
    predicted_masks: Tensor


def write_showcase(
    path: Path, translation: AttendedTranslation, relabelled: RelabelledImages, segmented: SegmentedPictures
) -> None:
    """Write a PNG of the three, digits above masks on the left, attention on the right. All tensors on the CPU."""
    figure = new_figure(width=WIDTH, height=HEIGHT)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.45, 1))
    _draw_relabelled(figure.add_subplot(grid[0, 0]), relabelled)
    _draw_segmented(figure.add_subplot(grid[1, 0]), segmented)
    _draw_attention(figure.add_subplot(grid[:, 1]), translation)
    save_png(figure, path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(N_COLORS)
    small.save(path, optimize=True)


def _draw_relabelled(ax: "Axes", relabelled: RelabelledImages) -> None:
    inputs = relabelled.images.float()[:, None] / 255
    cells = torch.cat([inputs, relabelled.outputs.float()], dim=1).expand(-1, -1, 3, -1, -1)
    _draw_cells(ax, (255 * cells.clamp(0, 1)).round().byte(), ["input", *relabelled.labels])
    ax.set_title("VAE: one latent under every label", fontsize=10, loc="left", weight="bold")


def _draw_segmented(ax: "Axes", segmented: SegmentedPictures) -> None:
    """Picture, true mask and prediction beside each other, two pictures in a row."""
    pictures, true, predicted = segmented.pictures, segmented.true_masks, segmented.predicted_masks
    factor = max(1, round(SMALLEST / pictures.shape[-1]))  # before lines are drawn into them

    def enlarged(images: Tensor) -> Tensor:  # (P, C, S, S)
        return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    large = enlarged(pictures)
    overlays = [overlay_masks(large, enlarged(masks[:, None])[:, 0]) for masks in (true, predicted)]
    triples = torch.stack([large, *overlays], dim=1)  # (P, 3, 3, S, S)
    n_columns = 2 if len(triples) > 1 else 1
    cells = triples[: len(triples) // n_columns * n_columns].unflatten(0, (-1, n_columns)).flatten(1, 2)
    _draw_cells(ax, cells, ["picture", "true mask", "predicted"] * n_columns)
    ax.set_title("U-Net: masks of test pictures", fontsize=10, loc="left", weight="bold")


def _draw_cells(ax: "Axes", cells: Tensor, column_labels: Sequence[str]) -> None:
    """Pictures (rows, columns, 3, H, W) uint8 in a grid, with a label above each column."""
    padded = F.pad(cells, (0, GAP, 0, GAP), value=255)
    width = padded.shape[-1]
    mosaic = padded.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # rows of pixels, their columns, RGB
    ax.imshow(mosaic[:-GAP, :-GAP].numpy(), interpolation="nearest")
    centers = [(column + 0.5) * width - GAP / 2 for column in range(len(column_labels))]
    ax.set_xticks(centers, column_labels, fontsize=8, parse_math=False)
    ax.set_yticks([])
    ax.tick_params(top=False, labeltop=True, bottom=False, labelbottom=False, length=0, pad=2)
    ax.spines[:].set_visible(False)


def _draw_attention(ax: "Axes", translation: AttendedTranslation) -> None:
    ax.imshow(translation.weights, cmap="Blues", vmin=0, aspect="auto")
    ax.set_xticks(
        range(len(translation.source_tokens)), translation.source_tokens, rotation=60, fontsize=8, parse_math=False
    )
    ax.set_yticks(range(len(translation.target_tokens)), translation.target_tokens, fontsize=8, parse_math=False)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("left")
        label.set_rotation_mode("anchor")
    ax.set_title("Translation: where it looks at each token", fontsize=10, loc="left", weight="bold")
