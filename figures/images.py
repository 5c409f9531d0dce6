"""PNG figures of a run on images: grids of pictures, confusion matrix, accuracy of each class, tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from figures.curves import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 10  # pixels around the pictures and texts of a grid or table
SMALL_IMAGE, LARGE_IMAGE = 112, 256  # pixels: smaller pictures are enlarged to about, larger ones shrunk to
WRAP_CHARACTERS = 30  # longer lines of titles and labels are wrapped
MAX_CELL_NUMBERS = 20  # classes up to which a confusion matrix has numbers in its cells
INCHES_PER_LETTER = 0.085  # of a class name in 9-point type
MAX_CLASSES = 100  # class names on an axis, or bars


# --- pictures ---


def plot_image_grid(
    path: Path,
    images: np.ndarray | Tensor,
    titles: Sequence[str] | None,
    *,
    n_columns: int,
    title: str | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
) -> None:
    """Write a PNG of the images in reading order, `n_columns` in a row, each under its title.

    `images`: (N, C, H, W), C = 1 (grey) or 3 (RGB), uint8 or floats of 0 to 1 (clipped to it); N may be 0,
    which leaves the title alone. Small images are enlarged by a whole factor, with square pixels.
    `titles`: N, of any number of lines; `colors`: N, of the titles. `row_labels`: one for each row of the grid,
    on its left; `column_labels`: `n_columns`, above the first row. Long lines are wrapped.

    Raises `ValueError` where shapes and lengths do not fit.
    """
    pixels = _to_pixels(images)  # (N, H, W, 3)
    n_images, height, width, _ = pixels.shape
    if n_columns < 1:
        raise ValueError(f"n_columns is {n_columns}, not at least 1")
    n_rows = math.ceil(n_images / n_columns)
    _check_length("titles", titles, n_images, "images")
    _check_length("colors", colors, n_images, "images")
    _check_length("row_labels", row_labels, n_rows, "rows")
    _check_length("column_labels", column_labels, n_columns, "columns")
    if column_labels is None:
        n_columns = min(n_columns, max(n_images, 1))  # no empty columns
    titles = [_wrap(text) for text in titles or [""] * n_images]
    row_labels = [_wrap(text) for text in row_labels or [""] * n_rows]
    column_labels = [_wrap(text) for text in column_labels or [""] * n_columns]

    side = max(height, width)
    scale = max(1, round(SMALL_IMAGE / side)) if side <= LARGE_IMAGE else LARGE_IMAGE / side
    height, width = round(scale * height), round(scale * width)

    # The texts are measured first, and the grid is laid out around them: nothing can overlap or be cut off.
    figure = new_figure(width=1, height=1)
    small: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    large: dict[str, Any] = {"fontsize": 10, "parse_math": False}
    title_sizes = [_text_size(figure, text, small) for text in titles]
    column_sizes = [_text_size(figure, text, large) for text in column_labels]
    left = max((_text_size(figure, text, large)[0] for text in row_labels), default=0) + GAP
    cell = max([width, *(text_width + GAP // 2 for text_width, _ in [*title_sizes, *column_sizes])]) + GAP
    total_width = left + n_columns * cell + GAP
    title = _wrap(title or "", max(40, total_width // 10))  # an average letter is some 8 pixels wide
    title_width, title_height = _text_size(figure, title, large | {"weight": "bold"})
    left += max(0, title_width + 2 * GAP - total_width) // 2
    total_width = max(total_width, title_width + 2 * GAP)

    image_tops = []  # pixels from the top of the figure, for each row
    labels_bottom = y = GAP + title_height + GAP * bool(title) + max(text_height for _, text_height in column_sizes)
    for row in range(n_rows):
        of_row = title_sizes[row * n_columns : (row + 1) * n_columns]
        image_tops.append(y + max(text_height for _, text_height in of_row) + GAP // 2)
        y = image_tops[-1] + height + GAP

    ax = _pixel_axes(figure, total_width, y + GAP // 2)
    ax.text(total_width / 2, GAP, title, ha="center", va="top", weight="bold", **large)
    centers = [left + column * cell + (GAP + cell) // 2 for column in range(n_columns)]
    for center, text in zip(centers, column_labels, strict=True):
        ax.text(center, labels_bottom, text, ha="center", va="bottom", **large)
    for top, text in zip(image_tops, row_labels, strict=True):
        ax.text(left, top + height / 2, text, ha="right", va="center", **large)
    for index, (image, text) in enumerate(zip(pixels, titles, strict=True)):
        row, column = divmod(index, n_columns)
        top, x = image_tops[row], centers[column] - width // 2
        ax.imshow(
            image,
            extent=(x, x + width, top + height, top),
            aspect="auto",
            interpolation="nearest" if scale >= 1 else "antialiased",
        )
        color = colors[index] if colors else "black"
        ax.text(centers[column], top - GAP // 4, text, ha="center", va="bottom", color=color, **small)
    figure.set_label(title)
    save_png(figure, path)


def _to_pixels(images: np.ndarray | Tensor) -> np.ndarray:
    """(N, C, H, W) uint8 or floats of 0 to 1 as (N, H, W, 3) uint8."""
    if isinstance(images, Tensor):
        images = images.detach()
        images = (images.float() if images.is_floating_point() else images).numpy()  # numpy has no bfloat16
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {tuple(images.shape)} are not (N, 1, H, W) or (N, 3, H, W)")
    if np.issubdtype(images.dtype, np.floating):
        images = (255 * images.clip(0, 1)).round().astype(np.uint8)
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}, not uint8 or floats of 0 to 1")
    n_images, _, height, width = images.shape
    return np.broadcast_to(images, (n_images, 3, height, width)).transpose(0, 2, 3, 1)


# --- classes ---


def confusion_counts(
    true_labels: np.ndarray | Tensor, predicted_labels: np.ndarray | Tensor, n_classes: int
) -> np.ndarray:
    """(K, K) int64: how many examples of class i (row) were labelled j (column); K is `n_classes`.

    `true_labels`, `predicted_labels`: (N,) whole numbers. Raises `ValueError` for different lengths, and for
    labels that are not 0 to K - 1.
    """
    true_labels, predicted_labels = np.asarray(true_labels), np.asarray(predicted_labels)
    _check_length("predicted_labels", predicted_labels, len(true_labels), "true labels")
    for labels in (true_labels, predicted_labels):
        if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
            raise ValueError(f"labels from {labels.min()} to {labels.max()} are not all 0 to {n_classes - 1}")
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(counts, (true_labels, predicted_labels), 1)
    return counts


def plot_confusion_matrix(path: Path, counts: np.ndarray | Tensor, class_names: Sequence[str]) -> None:
    """Write a PNG of how often each class (row) was taken for which (column), and the accuracy above it.

    `counts`: (K, K), as `confusion_counts` gives them; `class_names`: K. The colour of a cell is its share of
    the row; up to 20 classes its count stands in it, except a zero. Of more than 100 names some are left out.

    Raises `ValueError` where the shape of `counts` does not fit the names, or all counts are zero.
    """
    from matplotlib.colors import PowerNorm

    counts = _checked_counts(counts, class_names)
    n_classes = len(counts)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    with_numbers = n_classes <= MAX_CELL_NUMBERS
    inches = max(3.0, 0.5 * n_classes) if with_numbers else min(0.16 * n_classes, 16.0)
    name_inches = INCHES_PER_LETTER * max(map(len, class_names))
    figure = new_figure(width=inches + name_inches + 1.8, height=inches + name_inches + 1)
    ax = figure.add_subplot()
    # Linear colours would not tell a mistake made in 2 % of the cases from one never made.
    norm = PowerNorm(gamma=0.5, vmin=0, vmax=1)
    image = ax.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    if with_numbers:
        for row, column in np.argwhere(counts):
            color = "white" if norm(shares[row, column]) > 0.6 else "black"
            size = 8 if counts[row, column] < 100_000 else 6
            ax.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=size)
    shown = range(0, n_classes, math.ceil(n_classes / MAX_CLASSES))
    names = [class_names[index] for index in shown]
    size = 9 if with_numbers else 7
    ax.set_xticks(shown, names, rotation=90, fontsize=size, parse_math=False)
    ax.set_yticks(shown, names, fontsize=size, parse_math=False)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.set_title(_accuracy_line(counts), fontsize=10)
    ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
    bar = figure.colorbar(image, ax=ax, label="share of the true class", ticks=ticks, shrink=0.8)
    bar.ax.set_yticklabels([f"{tick:.0%}" for tick in ticks], fontsize=8)
    save_png(figure, path)


def plot_class_accuracy(path: Path, counts: np.ndarray | Tensor, class_names: Sequence[str]) -> None:
    """Write a PNG of each class's accuracy as a bar, the most accurate on top, and the numbers beside it.

    `counts`: (K, K), as `confusion_counts` gives them; `class_names`: K. Of more than 100 classes, the 100
    least accurate are drawn; a class without examples has no bar.

    Raises `ValueError` where the shape of `counts` does not fit the names, or all counts are zero.
    """
    counts = _checked_counts(counts, class_names)
    right, total = counts.diagonal(), counts.sum(axis=1)
    accuracy = right / total.clip(min=1)
    order = np.lexsort((-accuracy, total == 0))[-MAX_CLASSES:]  # classes without examples at the bottom
    title = _accuracy_line(counts)
    if len(order) < len(counts):
        title += f"\nthe {len(order)} least accurate of {len(counts):,} classes"

    figure = new_figure(width=7 + INCHES_PER_LETTER * max(map(len, class_names)), height=1.2 + 0.22 * len(order))
    ax = figure.add_subplot()
    ax.barh(range(len(order)), accuracy[order], color="tab:blue")
    ax.axvline(right.sum() / total.sum(), color="black", linestyle="--", linewidth=1, label="all classes together")
    for y, index in enumerate(order):
        numbers = (
            f"{accuracy[index]:6.1%}  {right[index]:,} of {total[index]:,}"
            if total[index]
            else "        no examples"
        )
        ax.text(1.01, y, numbers, va="center", fontsize=8, family="monospace", transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(order)), [class_names[index] for index in order], fontsize=9, parse_math=False)
    ax.set_ylim(len(order) - 0.4, -0.6)  # the first on top
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(lambda share, _position: f"{share:.0%}")
    ax.set_xlabel("accuracy")
    ax.set_title(title, fontsize=10)
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower right", fontsize=8)
    save_png(figure, path)


def _checked_counts(counts: np.ndarray | Tensor, class_names: Sequence[str]) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.shape != (len(class_names), len(class_names)):
        raise ValueError(f"counts of shape {counts.shape} do not fit {len(class_names)} class names")
    if not counts.any():
        raise ValueError("counts are all zero: no example was classified")
    return counts


def _accuracy_line(counts: np.ndarray) -> str:
    right, total = counts.trace(), counts.sum()
    return f"accuracy {right / total:.2%} ({right:,} of {total:,})"


# --- tables ---


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str | None = None) -> list[str]:
    """The header and the rows as lines of the same length, columns aligned, for a monospaced font.

    `align`: a letter for each column, `l` (left) or `r` (right); by default the first is left, the others right.

    Raises `ValueError` for a row or an `align` of another length than the header.
    """
    align = "l" + "r" * (len(header) - 1) if align is None else align
    _check_length("align", align, len(header), "columns")
    if set(align) - set("lr"):
        raise ValueError(f"align is {align!r}, not letters `l` and `r`")
    for number, row in enumerate(rows, start=1):
        _check_length(f"row {number}", row, len(header), "columns")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    justify = {"l": str.ljust, "r": str.rjust}
    return [
        "  ".join(justify[side](cell, width) for side, cell, width in zip(align, row, widths, strict=True))
        for row in [header, *rows]
    ]


def plot_table(
    path: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    align: str | None = None,
) -> None:
    """Write a PNG of a table, `title` above it; `align` and errors as in `format_table`.

    Cells are of one line.
    """
    lines = format_table(header, rows, align=align)
    figure = new_figure(width=1, height=1)
    style: dict[str, Any] = {"fontsize": 9, "family": "monospace", "parse_math": False}
    bold = style | {"weight": "bold"}
    sizes = [_text_size(figure, lines[0], bold), *(_text_size(figure, line, style) for line in lines[1:])]
    line_height = max(height for _, height in sizes) + 4
    width = max(width for width, _ in sizes)
    title = _wrap(title or "", max(40, width // 10))
    title_style: dict[str, Any] = {"fontsize": 10, "weight": "bold", "parse_math": False}
    title_width, title_height = _text_size(figure, title, title_style)
    top = GAP + title_height + GAP * bool(title)
    total_width = max(width, title_width) + 2 * GAP

    ax = _pixel_axes(figure, total_width, top + len(lines) * line_height + GAP)
    ax.text(GAP, GAP, title, va="top", **title_style)
    for index, line in enumerate(lines):
        y = top + index * line_height
        if index % 2 == 0 and index > 0:  # stripes lead the eye along the row
            ax.axhspan(y, y + line_height, color="0.95")
        ax.text(GAP, y + line_height / 2, line, va="center_baseline", **(style if index else bold))
    ax.axhline(top + line_height, color="black", linewidth=1)
    figure.set_label(title)
    save_png(figure, path)


# --- layout in pixels ---


def _pixel_axes(figure: Figure, width: int, height: int) -> Axes:
    """Resize `figure` to `width` x `height` pixels; axes all over it, in pixels from the upper left corner."""
    figure.set_layout_engine("none")
    figure.set_size_inches((width + 0.01) / figure.dpi, (height + 0.01) / figure.dpi)  # is rounded down to pixels
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    return ax


def _text_size(figure: Figure, text: str, style: dict) -> tuple[int, int]:
    """Width and height in pixels."""
    artist = figure.text(0, 0, text, **style)
    box = artist.get_window_extent()
    artist.remove()
    return math.ceil(box.width), math.ceil(box.height)


def _wrap(text: str, width: int = WRAP_CHARACTERS) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def _check_length(name: str, values: Sequence | np.ndarray | None, expected: int, what: str) -> None:
    if values is not None and len(values) != expected:
        raise ValueError(f"{name}: {len(values)} for {expected} {what}")
