"""The figures of an image classifier's run: what it learns from and what it gets wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from figures.images import (
    confusion_counts,
    plot_class_accuracy,
    plot_confusion_matrix,
    plot_image_grid,
    plot_table,
)

QUANTITIES = ("min", "max", "mean", "std", "variance")


def write_data_figures(
    folder: Path,
    statistics: Mapping[str, Mapping],
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    augmented: Tensor,
) -> None:
    """Write data_statistics.png, samples.png (five images of each class) and augmentations.png.

    `statistics`: of each split, by name, "count", "shape" and, (C,) each, the QUANTITIES in units of 0..1.
    images (N, C, S, S) uint8 with labels (N,); `augmented` (M, C, S, S) in 0..1: one image in M epochs.
    """
    rows = []
    for split, values in statistics.items():
        count = f"{int(values['count']):,} of {'x'.join(str(int(side)) for side in values['shape'])}"
        for c in range(len(values["mean"])):
            cells = [f"{float(values[quantity][c]):.4f}" for quantity in QUANTITIES]
            rows.append([split if c == 0 else "", count if c == 0 else "", str(c), *cells])
    header = ["split", "images", "channel", *QUANTITIES]
    plot_table(folder / "data_statistics.png", header, rows, title="Pixels as numbers from 0 to 1")
    shown = torch.cat([(labels == k).nonzero()[:5, 0] for k in range(min(len(class_names), 20))])
    titles = [class_names[k] for k in labels[shown].tolist()]
    plot_image_grid(folder / "samples.png", images[shown], titles, n_columns=10, title="Training images")
    plot_image_grid(
        folder / "augmentations.png",
        augmented,
        [f"epoch {i}" for i in range(len(augmented))],
        n_columns=10,
        title="One training image as the epochs show it",
    )


def write_result_figures(
    folder: Path, images: Tensor, labels: Tensor, probabilities: Tensor, class_names: Sequence[str]
) -> None:
    """Write confusion_matrix.png, class_accuracy.png and misclassified.png (the 25 most confident mistakes).

    images (N, C, S, S) uint8, labels (N,), probabilities (N, K), all on the CPU.
    """
    confidence, predicted = probabilities.max(1)
    counts = confusion_counts(labels, predicted, len(class_names))
    plot_confusion_matrix(folder / "confusion_matrix.png", counts, class_names)
    plot_class_accuracy(folder / "class_accuracy.png", counts, class_names)
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True)[:25]]
    if len(worst):
        titles = [
            f"true: {class_names[int(labels[i])]}\npredicted: {class_names[int(predicted[i])]}, {confidence[i]:.0%}"
            for i in worst.tolist()
        ]
        plot_image_grid(
            folder / "misclassified.png",
            images[worst],
            titles,
            n_columns=5,
            title="The most confident mistakes on the test split",
        )
