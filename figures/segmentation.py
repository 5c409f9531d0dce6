"""The figures of a segmentation run: what it learns from, and what it makes of the pictures."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.images.masked import IGNORE
from figures.images import LARGE_IMAGE, plot_image_grid, plot_table

# Told apart by colour-blind readers too (Okabe and Ito, "Color Universal Design", 2008). Blue comes first,
# as no fur and little of what surrounds a pet is blue.
CLASS_COLORS = {
    "blue": (0, 114, 178),
    "orange": (230, 159, 0),
    "green": (0, 158, 115),
    "purple": (204, 121, 167),
    "yellow": (240, 228, 66),
    "vermilion": (213, 94, 0),
    "sky blue": (86, 180, 233),
}
GREY = (128, 128, 128)
N_SAMPLES = 12  # pictures in samples.png
N_EXTREMES = 6  # best and worst pictures
N_SHOWN = 8  # test pictures whose masks are kept in the course of training, and compared between runs
N_STAGES = 6  # evaluations that overlays.png shows
N_NAMED = 3  # classes that are named below a picture
N_COLUMNS = 4  # classes that have a column of the table
GRID_WIDTH = 2100  # pixels that a grid may fill


def overlay_masks(images: Tensor, masks: Tensor, alpha: float = 0.5) -> Tensor:
    """The images with their masks over them: each class but the background in its colour, with a contour.

    `images` (N, 3, H, W) uint8, `masks` (N, H, W) of 0 (background, left as it is), 1, 2, ... (the colours of
    `CLASS_COLORS`, from the first again after the last) or 255 (ignored: grey with stripes). Inside the contour
    and between the stripes the colour's share is `alpha`; at 0 there are only lines. The contour lies inside
    its class: a white line, and one in the class's colour, each 1 pixel wide for every 256 of the longer side.

    All on the CPU. Returns (N, 3, H, W) uint8. Raises `ValueError` where the shapes do not fit.
    """
    n_images, channels, height, width = images.shape
    if channels != 3 or masks.shape != (n_images, height, width):
        raise ValueError(f"masks of shape {tuple(masks.shape)} do not fit images of {tuple(images.shape)}")
    of_classes = [_class_color(k)[1] for k in range(1, IGNORE)]
    palette = torch.tensor([GREY, *of_classes, GREY], dtype=torch.float32)  # of the background none is seen
    line = max(1, round(max(height, width) / 256))
    diagonal = torch.arange(height)[:, None] + torch.arange(width)
    stripes = (masks == IGNORE) & (diagonal % (8 * line) < line)
    outer, contour = _near_another_class(masks, line), _near_another_class(masks, 2 * line)
    opacity = torch.where(contour | stripes, 1.0, alpha) * (masks != 0)  # (N, H, W)
    colors = palette[masks.long()]  # (N, H, W, 3)
    colors[outer] = 255.0  # seen on dark and on coloured ground; the inner line is seen on white
    opacity, colors = opacity[:, None], colors.permute(0, 3, 1, 2)
    return torch.lerp(images.float(), colors, opacity).round().byte()


def mask_colors(n_classes: int) -> list[tuple[int, int, int]]:
    """The colour of each class: black for the background, then those of `overlay_masks`."""
    return [(0, 0, 0), *(_class_color(k)[1] for k in range(1, n_classes))]


def _class_color(k: int) -> tuple[str, tuple[int, int, int]]:
    """Name and RGB of class k > 0."""
    return list(CLASS_COLORS.items())[(k - 1) % len(CLASS_COLORS)]


def _near_another_class(masks: Tensor, distance: int) -> Tensor:
    """(N, H, W) bool: is a pixel of another class within `distance` rows and columns?"""
    highest = lowest = masks  # by shifted views: max-pooling wants floats, and takes many times as long on a CPU
    for dim in (1, 2):
        highest = reduce(torch.maximum, _shifted(highest, dim, distance))
        lowest = reduce(torch.minimum, _shifted(lowest, dim, distance))
    return highest != lowest


def _shifted(values: Tensor, dim: int, distance: int) -> list[Tensor]:
    """The values as seen from up to `distance` places off along `dim`; beyond an edge are those at the edge."""
    size = values.shape[dim]
    places = torch.arange(-distance, size + distance).clamp(0, size - 1)
    padded = values.index_select(dim, places)
    return [padded.narrow(dim, start, size) for start in range(2 * distance + 1)]


def write_data_figures(
    folder: Path,
    statistics: Mapping[str, Mapping],
    images: Tensor,
    masks: Tensor,
    class_names: Sequence[str],
    augmented_images: Tensor,
    augmented_masks: Tensor,
) -> None:
    """Write data_statistics.png, samples.png (12 pictures with their masks) and augmentations.png.

    `statistics`: of each split, by name, "count", "shape" (C, H, W), "mean" and "std" (C,) in units of 0..1, and
    "class_shares" (K,), the share of each class in all pixels; what is missing to 1 is ignored pixels.
    `images` (N, 3, S, S) uint8 with `masks` (N, S, S) of classes 0 to K - 1, or 255; `class_names`: K.
    `augmented_images` (M, 3, S, S) in 0..1 with `augmented_masks` (M, S, S): one picture in M epochs. All tensors
    are on the CPU, here and below.
    """
    _write_statistics(folder / "data_statistics.png", statistics, class_names)

    shown = torch.linspace(0, len(images) - 1, min(N_SAMPLES, len(images))).round().long()
    titles = []
    for mask in masks[shown]:
        titles += ["", _shares_in_words(mask, class_names)]
    pictures = beside_overlays(images[shown], [masks[shown]], n_columns=6)
    plot_image_grid(
        folder / "samples.png",
        pictures,
        titles,
        n_columns=6,
        column_labels=["picture", "mask"] * 3,
        title=f"Training pictures and their masks ({_color_key(class_names, masks[shown])})",
    )

    pixels = (255 * augmented_images.clamp(0, 1)).round().byte()
    color_key = _color_key(class_names, augmented_masks)
    pixels, augmented_masks = _enlarged(pixels, 6), _enlarged(augmented_masks[:, None], 6)[:, 0]
    plot_image_grid(
        folder / "augmentations.png",
        overlay_masks(pixels, augmented_masks, alpha=0.0),
        [f"epoch {i}" for i in range(len(pixels))],
        n_columns=6,
        title=f"One training picture as the epochs show it, and its mask's contour ({color_key})",
    )


def _shares_in_words(mask: Tensor, class_names: Sequence[str]) -> str:
    """The share of each class but the background; of many classes those that cover most."""
    shares = {k: float((mask == k).float().mean()) for k in range(1, len(class_names))}
    if len(shares) > N_NAMED:
        shares = dict(sorted(((k, s) for k, s in shares.items() if s > 0), key=lambda item: -item[1])[:N_NAMED])
    return ", ".join(f"{class_names[k]} {share:.0%}" for k, share in shares.items())


def _write_statistics(path: Path, statistics: Mapping[str, Mapping], class_names: Sequence[str]) -> None:
    channels = ("red", "green", "blue")
    header = ["split", "pictures", "size", *class_names, "ignored", *(f"{c}: mean ± std" for c in channels)]
    rows = []
    for split, values in statistics.items():
        height, width = (int(side) for side in values["shape"][1:])
        shares = [float(share) for share in values["class_shares"]]
        shares.append(max(0.0, 1 - sum(shares)))
        rows.append(
            [split, f"{int(values['count']):,}", f"{height} x {width}"]
            + [f"{share:.1%}" for share in shares]
            + [f"{float(values['mean'][c]):.3f} ± {float(values['std'][c]):.3f}" for c in range(len(channels))]
        )
    if len(class_names) > N_COLUMNS:  # a row for each class, a column for each split
        header, *rows = (list(column) for column in zip(header, *rows, strict=True))
    title = "Share of each class in all pixels; channels as numbers from 0 to 1"
    plot_table(path, header, rows, title=title)


def write_overlays_over_epochs(
    path: Path, images: Tensor, true_masks: Tensor, predictions: Mapping[str, Tensor], split: str
) -> None:
    """Write a PNG with a row for each picture: the picture, its true mask, and the mask predicted at each label.

    `images` (P, 3, S, S) uint8, `true_masks` (P, S, S); `predictions`: for each label ("epoch 1") masks
    (P, S, S) of the same pictures, in the order in which they are drawn; `split` is what the pictures are of.
    """
    column_labels = ["picture", "true mask", *predictions]
    pictures = beside_overlays(images, [true_masks, *predictions.values()], len(column_labels))
    plot_image_grid(
        path,
        pictures,
        None,
        n_columns=len(column_labels),
        column_labels=column_labels,
        title=f"Predicted masks of the same {split} pictures in the course of training",
    )


def shown_pictures(n_pictures: int) -> Tensor:
    """The numbers (P,) int64 of the pictures that figures follow: the same for every run on the same data."""
    return torch.linspace(0, n_pictures - 1, min(N_SHOWN, n_pictures)).round().long()


def keep_predictions(run_dir: Path, step: int, predicted_masks: Tensor) -> None:
    """Keep the masks (N, S, S) uint8 of the shown pictures as predictions/step_<step>.npy."""
    folder = run_dir / "predictions"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"step_{step}.npy", predicted_masks[shown_pictures(len(predicted_masks))].numpy())


def write_overlays(run_dir: Path, images: Tensor, true_masks: Tensor, updates_per_epoch: int, split: str) -> None:
    """Write figures/overlays.png, of up to N_STAGES of what `keep_predictions` kept; nothing where it kept nothing.

    `images` (N, 3, S, S) and `true_masks` (N, S, S) uint8, on the CPU: all pictures of the split ("validation" or
    "test") that the predictions were made of.
    """
    steps = sorted(int(path.stem.removeprefix("step_")) for path in (run_dir / "predictions").glob("step_*.npy"))
    if not steps:
        return
    chosen = sorted({steps[i] for i in np.linspace(0, len(steps) - 1, N_STAGES).round().astype(int)})
    stages = {
        f"epoch {step / updates_per_epoch:.4g}": torch.from_numpy(np.load(run_dir / f"predictions/step_{step}.npy"))
        for step in chosen
    }
    shown = shown_pictures(len(images))
    path = run_dir / "figures" / "overlays.png"
    write_overlays_over_epochs(path, images[shown], true_masks[shown], stages, split)


def write_result_figures(
    run_dir: Path,
    images: Tensor,
    true_masks: Tensor,
    predicted_masks: Tensor,
    dice_of_images: Tensor,
    names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Write figures/best_and_worst.png, and test_predictions.npz for comparisons.

    Of all N test pictures, on the CPU: `images` (N, 3, S, S), `true_masks` and `predicted_masks` (N, S, S), all
    uint8, `dice_of_images` (N,) and `names`; `class_names`: K.
    """
    shown = shown_pictures(len(images))
    path = run_dir / "figures" / "best_and_worst.png"
    write_best_and_worst(path, images, true_masks, predicted_masks, dice_of_images, names)
    np.savez(
        run_dir / "test_predictions.npz",
        images=images[shown],
        true_masks=true_masks[shown],
        predicted_masks=predicted_masks[shown],
        names=[names[i] for i in shown],
        class_names=list(class_names),
    )


def write_best_and_worst(
    path: Path,
    images: Tensor,
    true_masks: Tensor,
    predicted_masks: Tensor,
    dice_of_images: Tensor,
    names: Sequence[str],
) -> None:
    """Write a PNG of the 6 test pictures of the lowest Dice, the worst first, and the 6 of the highest.

    `images` (N, 3, S, S) uint8, `true_masks` and `predicted_masks` (N, S, S), `dice_of_images` (N,),
    `names`: N. Up to 12 pictures, all of them are drawn, by rising Dice.
    """
    n_images = len(images)
    order = dice_of_images.argsort(stable=True)
    row_labels = None
    title = f"All {n_images} test pictures, from the lowest Dice to the highest"
    if n_images > 2 * N_EXTREMES:
        order = torch.cat([order[:N_EXTREMES], order[-N_EXTREMES:]])
        row_labels = ["worst"] * (N_EXTREMES // 2) + ["best"] * (N_EXTREMES // 2)  # two pictures in a row
        title = (
            f"Of {n_images:,} test pictures the {N_EXTREMES} of the lowest Dice and the {N_EXTREMES} of the highest"
        )
    titles = [text for i in order.tolist() for text in (names[i], "", f"Dice {dice_of_images[i]:.3f}")]
    pictures = beside_overlays(images[order], [true_masks[order], predicted_masks[order]], n_columns=6)
    plot_image_grid(
        path,
        pictures,
        titles,
        n_columns=6,
        row_labels=row_labels,
        column_labels=["picture", "true mask", "predicted mask"] * 2,
        title=title,
    )


def beside_overlays(images: Tensor, masks: Sequence[Tensor], n_columns: int) -> Tensor:
    """Each image, followed by itself under each of its masks, as large as a grid of `n_columns` has room for.

    `images` (P, 3, H, W) uint8, `masks`: L of (P, H, W). Returns (P * (1 + L), 3, h, w) uint8 with h = k H and
    w = k W, k whole: the pixels stay square and exact.
    """
    images = _enlarged(images, n_columns)
    overlays = [overlay_masks(images, _enlarged(mask[:, None], n_columns)[:, 0]) for mask in masks]
    return torch.stack([images, *overlays], dim=1).flatten(0, 1)


def _enlarged(images: Tensor, n_columns: int) -> Tensor:
    """(N, C, H, W), enlarged before lines are drawn into it, so that these stay thin."""
    factor = max(1, min(LARGE_IMAGE, GRID_WIDTH // n_columns) // max(images.shape[2:]))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _color_key(class_names: Sequence[str], masks: Tensor) -> str:
    classes = range(1, len(class_names))
    if len(classes) > len(CLASS_COLORS):
        present = {int(k) for k in masks.unique()}
        classes = [k for k in classes if k in present]
    key = [f"{class_names[k]}: {_class_color(k)[0]}" for k in classes[: len(CLASS_COLORS)]]
    if len(classes) > len(CLASS_COLORS):
        key.append(f"{len(classes) - len(CLASS_COLORS)} more in the same colours")
    return ", ".join([*key, *["ignored: grey stripes"] * bool((masks == IGNORE).any())])
