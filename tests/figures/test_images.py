from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from figures import images as image_figures
from figures.images import (
    confusion_counts,
    format_table,
    plot_class_accuracy,
    plot_confusion_matrix,
    plot_image_grid,
    plot_table,
)

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph or a squeezed layout is only a warning

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures as they are written, by file name, to look inside them."""
    seen: dict[str, Figure] = {}
    save_png = image_figures.save_png

    def save_and_keep(figure: Figure, path: Path) -> None:
        save_png(figure, path)
        seen[path.name] = figure

    monkeypatch.setattr(image_figures, "save_png", save_and_keep)
    return seen


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def boxes(figure: Figure) -> list:
    """Where the texts and pictures of a grid or table lie, in pixels."""
    (ax,) = figure.axes
    texts = [text for text in ax.texts if text.get_text()]
    return [artist.get_window_extent() for artist in [*texts, *ax.images]]


def assert_nothing_overlaps_or_is_cut_off(figure: Figure) -> None:
    for box in boxes(figure):
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.width + 0.1 and box.y1 <= figure.bbox.height + 0.1
    for one, other in combinations(boxes(figure), 2):
        overlap_x = min(one.x1, other.x1) - max(one.x0, other.x0)
        overlap_y = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(overlap_x, overlap_y) < 1, (one, other)


def random_images(n: int, channels: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


# --- pictures ---


@pytest.mark.parametrize("n_images", [1, 25, 97])
def test_grid_of_misclassified_images(tmp_path, drawn, n_images):
    titles = [f"true: {CLASSES[i % 10]}\npredicted: automobile, {i} %" for i in range(n_images)]
    title = "Misclassified test images, those first of which the model was most certain (25 of 623), seed 0"
    colors = ["tab:red"] * n_images
    path = tmp_path / "new" / "grid.png"
    plot_image_grid(path, random_images(n_images), titles, n_columns=10, title=title, colors=colors)
    assert read_png(path).shape[1] < 2500
    (ax,) = drawn["grid.png"].axes
    assert [text.get_text() for text in ax.texts if text.get_color() == "tab:red"] == titles
    assert len(ax.images) == n_images
    assert_nothing_overlaps_or_is_cut_off(drawn["grid.png"])


@pytest.mark.parametrize(("channels", "size", "scale"), [(1, 28, 4), (3, 32, 4), (3, 64, 2), (3, 200, 1)])
def test_pixels_are_square_and_exact(tmp_path, drawn, channels, size, scale):
    images = random_images(6, channels, size)
    plot_image_grid(tmp_path / "grid.png", images, ["a longer title than the picture"] * 6, n_columns=3)
    picture = read_png(tmp_path / "grid.png")
    for image, expected in zip(drawn["grid.png"].axes[0].images, images, strict=True):
        box = image.get_window_extent()
        left, top = round(box.x0), round(picture.shape[0] - box.y1)
        seen = picture[top : top + scale * size, left : left + scale * size]
        enlarged = np.kron(expected, np.ones((1, scale, scale), dtype=np.uint8)).transpose(1, 2, 0)
        np.testing.assert_array_equal(seen, np.broadcast_to(enlarged, seen.shape))


def test_large_pictures_are_shrunk(tmp_path, drawn):
    plot_image_grid(tmp_path / "grid.png", random_images(2, size=600)[:, :, :300], None, n_columns=2)
    sizes = [image.get_window_extent().size for image in drawn["grid.png"].axes[0].images]
    np.testing.assert_allclose(sizes, [(256, 128)] * 2, atol=0.1)


@pytest.mark.parametrize(
    "convert",
    [
        lambda images: images / 255,
        lambda images: (images / 255).astype(np.float16),
        torch.from_numpy,
        lambda images: torch.from_numpy(images).float().div(255).requires_grad_(),
        lambda images: torch.from_numpy(images).to(memory_format=torch.channels_last),
    ],
)
def test_every_kind_of_array_gives_the_same_picture(tmp_path, convert):
    images = random_images(4)
    plot_image_grid(tmp_path / "bytes.png", images, None, n_columns=2)
    plot_image_grid(tmp_path / "other.png", convert(images), None, n_columns=2)
    np.testing.assert_array_equal(read_png(tmp_path / "other.png"), read_png(tmp_path / "bytes.png"))


def test_bfloat16_and_values_beyond_0_and_1_are_drawn(tmp_path):
    ends = torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.bfloat16).view(1, 1, 2, 2)
    plot_image_grid(tmp_path / "other.png", ends, None, n_columns=1)
    plot_image_grid(tmp_path / "bytes.png", (255 * ends.clamp(0, 1)).byte(), None, n_columns=1)
    np.testing.assert_array_equal(read_png(tmp_path / "other.png"), read_png(tmp_path / "bytes.png"))


def test_rows_and_columns_are_labelled(tmp_path, drawn):
    columns = ["input", "label", "wrong label, of many words that are not short", "output"]
    rows = [*CLASSES[:-1], "american_pit_bull_terrier_of_a_long_name $5 $6"]  # two `$` would be a formula
    images = random_images(40, channels=1, size=28)
    path = tmp_path / "grid.png"
    plot_image_grid(path, images, None, n_columns=4, row_labels=rows, column_labels=columns, title="VAE")
    (ax,) = drawn["grid.png"].axes
    assert_nothing_overlaps_or_is_cut_off(drawn["grid.png"])
    place = {"".join(text.get_text().split()): text.get_window_extent() for text in ax.texts}  # wrapped or not
    cells = np.array([image.get_window_extent().extents for image in ax.images]).reshape(10, 4, 4)
    for label, (x0, y0, _, y1) in zip(rows, cells[:, 0], strict=True):
        box = place[label.replace(" ", "")]
        assert box.x1 < x0 and y0 < (box.y0 + box.y1) / 2 < y1
    for label, (x0, _, x1, y1) in zip(columns, cells[0], strict=True):
        box = place[label.replace(" ", "")]
        assert box.y0 > y1 and (box.x0 + box.x1) / 2 == pytest.approx((x0 + x1) / 2, abs=1)


def test_no_images_leave_the_title(tmp_path, drawn):
    plot_image_grid(tmp_path / "grid.png", random_images(0), [], n_columns=5, title="Misclassified: 0 of 10,000")
    assert (read_png(tmp_path / "grid.png") < 128).any()
    assert_nothing_overlaps_or_is_cut_off(drawn["grid.png"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titles": ["a"] * 5}, "titles: 5 for 6 images"),
        ({"titles": []}, "titles: 0 for 6 images"),
        ({"colors": ["red"]}, "colors: 1 for 6 images"),
        ({"row_labels": ["a"]}, "row_labels: 1 for 2 rows"),
        ({"column_labels": ["a"] * 3}, "column_labels: 3 for 4 columns"),
        ({"n_columns": 0}, "n_columns is 0"),
        ({"images": random_images(6)[0]}, r"shape \(3, 32, 32\)"),
        ({"images": random_images(6, channels=4)}, r"shape \(6, 4, 32, 32\)"),
        ({"images": random_images(6).astype(np.int64)}, "int64"),
    ],
)
def test_grid_that_does_not_fit_is_refused(tmp_path, change, message):
    arguments = {"images": random_images(6), "titles": ["a"] * 6, "n_columns": 4} | change
    with pytest.raises(ValueError, match=message):
        plot_image_grid(tmp_path / "grid.png", **arguments)
    assert not (tmp_path / "grid.png").exists()


# --- classes ---


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_confusion_counts_against_a_plain_loop(convert):
    true, predicted = np.random.default_rng(0).integers(0, 7, (2, 1000))
    expected = [[0] * 9 for _ in range(9)]
    for i, j in zip(true.tolist(), predicted.tolist(), strict=True):
        expected[i][j] += 1
    counts = confusion_counts(convert(true), convert(predicted), 9)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected
    assert confusion_counts(true[:0], predicted[:0], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [([0, 1], [0], "1 for 2"), ([0, 3], [0, 1], "0 to 3"), ([0, 1], [0, -1], "-1 to 0")],
)
def test_labels_that_do_not_fit_are_refused(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(torch.tensor(true), torch.tensor(predicted), 3)


def random_counts(n_classes: int, n_examples: int = 10_000) -> np.ndarray:
    """Nine of ten right; the last of several classes has no examples."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, max(1, n_classes - 1), n_examples)
    predicted = np.where(rng.random(n_examples) < 0.9, true, rng.integers(0, n_classes, n_examples))
    return confusion_counts(true, predicted, n_classes)


@pytest.mark.parametrize("n_classes", [1, 10, 21, 300])
def test_confusion_matrix(tmp_path, drawn, n_classes):
    counts = random_counts(n_classes)
    names = [f"class $ {i} $" for i in range(n_classes)]
    plot_confusion_matrix(tmp_path / "confusion.png", torch.from_numpy(counts), names)
    assert max(read_png(tmp_path / "confusion.png").shape) < 2500
    ax = drawn["confusion.png"].axes[0]
    right = sum(int(counts[i, i]) for i in range(n_classes))
    assert ax.get_title() == f"accuracy {right / 100:.2f}% ({right:,} of 10,000)"
    (image,) = ax.images
    for row, shares in zip(counts, image.get_array(), strict=True):
        np.testing.assert_allclose(shares, row / row.sum() if row.sum() else row)
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in ax.texts}
    shown = n_classes <= 20
    assert cells == {(i, j): str(counts[i, j]) for i, j in np.argwhere(counts) if shown}
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == [text.get_text() for text in ax.get_xticklabels()]
    assert labels == names[:: 3 if n_classes == 300 else 1]


@pytest.mark.parametrize("length", [4, 60])
def test_axis_names_lie_inside_the_figure(tmp_path, drawn, length):
    names = [name.ljust(length, "M")[:length] for name in CLASSES]
    plot_confusion_matrix(tmp_path / "confusion.png", random_counts(10), names)
    plot_class_accuracy(tmp_path / "accuracy.png", random_counts(10), names)
    for figure in drawn.values():
        ax = figure.axes[0]
        for text in [*ax.get_yticklabels(), *ax.texts, ax.title]:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width
            assert box.y0 >= 0 and box.y1 <= figure.bbox.height
        assert ax.bbox.width > 200


def test_class_accuracy_is_sorted_with_numbers(tmp_path, drawn):
    counts = np.array([[5, 5, 0, 0], [0, 1999, 1, 0], [1, 0, 3, 0], [0, 0, 0, 0]])
    plot_class_accuracy(tmp_path / "accuracy.png", counts, ["cat", "dog", "frog", "ship"])
    read_png(tmp_path / "accuracy.png")
    ax = drawn["accuracy.png"].axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["dog", "frog", "cat", "ship"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.9995, 0.75, 0.5, 0])
    numbers = [text.get_text().split(maxsplit=1) for text in ax.texts]
    assert numbers == [["100.0%", "1,999 of 2,000"], ["75.0%", "3 of 4"], ["50.0%", "5 of 10"], ["no", "examples"]]
    assert ax.get_title() == "accuracy 99.65% (2,007 of 2,014)"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def test_of_many_classes_the_least_accurate_are_drawn(tmp_path, drawn):
    right = np.arange(150)
    counts = np.diag(right)
    counts[:, 0] += 150 - right
    plot_class_accuracy(tmp_path / "accuracy.png", counts, [str(i) for i in range(150)])
    ax = drawn["accuracy.png"].axes[0]
    # All examples of class 0 are put into class 0, so that it is the most accurate of all.
    assert [text.get_text() for text in ax.get_yticklabels()] == [str(i) for i in range(100, 0, -1)]
    assert "the 100 least accurate of 150 classes" in ax.get_title()


@pytest.mark.parametrize("plot", [plot_confusion_matrix, plot_class_accuracy])
@pytest.mark.parametrize(
    ("counts", "message"),
    [(np.ones((2, 2)), "3 class names"), (np.ones((3, 2)), "3 class names"), (np.zeros((3, 3)), "all zero")],
)
def test_counts_that_do_not_fit_are_refused(tmp_path, plot, counts, message):
    with pytest.raises(ValueError, match=message):
        plot(tmp_path / "figure.png", counts, ["cat", "dog", "frog"])


# --- tables ---


def test_table_columns_are_aligned():
    header, rows = ["layer", "n"], [["a", "1,000"], ["longer", "7"]]
    assert format_table(header, rows) == ["layer       n", "a       1,000", "longer      7"]
    assert format_table(header, rows, align="rl") == [" layer  n    ", "     a  1,000", "longer  7    "]
    assert format_table(header, []) == ["layer  n"]


@pytest.mark.parametrize("n_rows", [0, 3, 60])
@pytest.mark.parametrize("title", [None, "A title much longer than the narrow table under it, and with $ and $"])
def test_table_picture_holds_every_line(tmp_path, drawn, n_rows, title):
    rows = [[f"layer{i}.conv", "(1, 512, 4, 4)", f"{i * 1234:,}"] for i in range(n_rows)]
    header = ["layer", "output shape", "parameters"]
    plot_table(tmp_path / "table.png", header, rows, title=title, align="llr")
    height, width, _ = read_png(tmp_path / "table.png").shape
    assert width < 500 and height < 100 + 20 * n_rows
    texts = [text.get_text() for text in drawn["table.png"].axes[0].texts]
    assert texts[1:] == format_table(header, rows, align="llr")
    assert_nothing_overlaps_or_is_cut_off(drawn["table.png"])


@pytest.mark.parametrize(
    ("rows", "align", "message"),
    [
        ([["a", "b"], ["a"]], None, "row 2: 1 for 2 columns"),
        ([["a", "b"]], "lrr", "align: 3 for 2 columns"),
        ([["a", "b"]], "lc", "'lc'"),
    ],
)
def test_table_that_does_not_fit_is_refused(tmp_path, rows, align, message):
    with pytest.raises(ValueError, match=message):
        plot_table(tmp_path / "table.png", ["x", "y"], rows, align=align)
