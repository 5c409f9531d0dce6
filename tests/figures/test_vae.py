from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from figures import images as image_figures
from figures import vae as cvae_figures
from figures.vae import (
    plot_active_units,
    write_interpolations,
    write_latent_map,
    write_prior_samples,
    write_reconstructions,
    write_relabelled,
    write_wrong_labels,
)

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph or a squeezed layout is only a warning

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BLUE = (31, 119, 180)


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures as they are written, by file name, to look inside them."""
    seen: dict[str, Figure] = {}
    save_png = image_figures.save_png

    def save_and_keep(figure: Figure, path: Path) -> None:
        save_png(figure, path)
        seen[path.name] = figure

    for module in (image_figures, cvae_figures):
        monkeypatch.setattr(module, "save_png", save_and_keep)
    return seen


def numbered(*shape: int, channels: int = 1, size: int = 8) -> Tensor:
    """(*shape, C, S, S) uint8: picture i is of the one grey value i + 1, which tells it in a figure."""
    n = int(np.prod(shape))
    assert n < 255
    values = torch.arange(1, n + 1, dtype=torch.uint8)
    return values.view(*shape, 1, 1, 1).expand(*shape, channels, size, size)


def seen_values(figure: Figure, n_columns: int) -> list[list[int]]:
    """The value in the middle of each picture of a grid, by rows; white pictures, which fill up, are left out."""
    (ax,) = figure.axes
    values = []
    for image in ax.images:
        pixels = image.get_array()
        values.append(int(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2, 0]))
    rows = [values[start : start + n_columns] for start in range(0, len(values), n_columns)]
    return [[value for value in row if value != 255] for row in rows]


def texts(figure: Figure) -> list[str]:
    """All that stands in a grid, unwrapped: title, column labels, row labels, titles of pictures."""
    return [" ".join(text.get_text().split()) for text in figure.axes[0].texts if text.get_text()]


def colors_in(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        assert image.format == "PNG" and max(image.size) < 3500
        return {color for _, color in image.convert("RGB").getcolors(1 << 24)}


# --- pictures ---


@pytest.mark.parametrize(("n_pairs", "channels", "size"), [(25, 1, 28), (25, 3, 32), (3, 3, 200)])
def test_wrong_labels_stand_above_what_they_belong_to(tmp_path, drawn, n_pairs, channels, size):
    true_labels = torch.arange(n_pairs) % 10
    given_labels = (true_labels + 1 + torch.arange(n_pairs) % 9) % 10
    both = numbered(n_pairs, 2, channels=channels, size=size)
    path = tmp_path / "new" / "wrong_labels.png"
    write_wrong_labels(path, both[:, 0], true_labels, given_labels, both[:, 1].float() / 255, CLASSES)
    colors_in(path)
    figure = drawn["wrong_labels.png"]
    n_columns = min(10, 2 * n_pairs)
    assert list(chain(*seen_values(figure, n_columns))) == list(range(1, 2 * n_pairs + 1))
    texts_of_grid = [text for text in figure.axes[0].texts if text.get_text()]
    labels = texts_of_grid[1 + n_columns :]  # after the title and the column labels
    expected = []
    for true, given in zip(true_labels, given_labels, strict=True):
        expected += [(f"true: {CLASSES[true]}", "tab:blue"), (f"given: {CLASSES[given]}", "tab:red")]
    assert [(text.get_text(), text.get_color()) for text in labels] == expected
    assert texts(figure)[0].startswith(f"{n_pairs} test images")
    assert texts(figure)[1 : 1 + n_columns] == ["input", "output"] * (n_columns // 2)


def test_the_two_pictures_of_a_pair_are_nearer_to_each_other_than_to_the_next(tmp_path, drawn):
    black = torch.zeros(5, 1, 28, 28)
    labels = torch.zeros(5, dtype=torch.long)
    write_wrong_labels(tmp_path / "wrong_labels.png", black, labels, labels + 1, black, list("0123456789"))
    with Image.open(tmp_path / "wrong_labels.png") as image:
        picture = np.asarray(image.convert("L"))
    middle = picture[-60] == 0  # a line through the last row of pictures
    edges = np.flatnonzero(np.diff(middle.astype(int)))
    starts, ends = edges[::2], edges[1::2]
    assert (ends - starts).tolist() == [112] * 10  # enlarged four times
    gaps = starts[1:] - ends[:-1]
    assert gaps[::2].max() < 0.7 * gaps[1::2].min()


def test_a_right_label_is_not_passed_off_as_a_wrong_one(tmp_path):
    images, labels = numbered(4), torch.tensor([0, 1, 2, 3])
    given = torch.tensor([1, 2, 2, 0])
    with pytest.raises(ValueError, match="image 2: the label given, bird, is the true one"):
        write_wrong_labels(tmp_path / "wrong_labels.png", images, labels, given, images, CLASSES)
    assert not (tmp_path / "wrong_labels.png").exists()


@pytest.mark.parametrize("n_images", [4, 10, 26])
def test_reconstructions_stand_below_their_images(tmp_path, drawn, n_images):
    images, outputs = numbered(2, n_images)
    labels = torch.arange(n_images) % 10
    path = tmp_path / "reconstructions.png"
    write_reconstructions(path, images, labels, outputs.float() / 255, CLASSES)
    colors_in(path)
    n_columns = min(10, n_images)
    rows = seen_values(drawn[path.name], n_columns)
    assert list(chain(*rows[::2])) == list(range(1, n_images + 1))
    for above, below in zip(rows[::2], rows[1::2], strict=True):
        assert below == [value + n_images for value in above]
    shown = texts(drawn[path.name])
    assert shown[-n_images:] == [f"true: {CLASSES[i % 10]}" for i in range(n_images)]
    assert shown[1:-n_images] == ["input", "output"] * (len(rows) // 2)


@pytest.mark.parametrize(("n_classes", "n_shown"), [(1, 1), (10, 10), (24, 20)])
def test_prior_samples_have_a_row_for_each_class(tmp_path, drawn, n_classes, n_shown):
    names = [f"class {k}" for k in range(n_classes)]
    write_prior_samples(tmp_path / "prior.png", numbered(n_classes, 3), names)
    colors_in(tmp_path / "prior.png")
    assert seen_values(drawn["prior.png"], 3) == [[3 * k + i for i in (1, 2, 3)] for k in range(n_shown)]
    title, *labels = texts(drawn["prior.png"])
    assert labels == names[:n_shown]
    assert ("20 of 24 classes" in title) == (n_classes == 24)
    assert "temperature" not in title


def test_the_titles_of_what_is_drawn_say_at_which_temperature(tmp_path, drawn):
    names, images, labels = CLASSES[:2], numbered(2), torch.tensor([0, 1])
    write_prior_samples(tmp_path / "prior.png", numbered(2, 3), names, temperature=0.3)
    write_wrong_labels(tmp_path / "wrong.png", images, labels, 1 - labels, images, names, temperature=0.3)
    write_relabelled(tmp_path / "each.png", images, numbered(2, 2), labels, names, temperature=0.3)
    for name in ("prior.png", "wrong.png", "each.png"):
        assert "temperature of 0.3" in texts(drawn[name])[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_true_label_of_a_latent_is_framed_and_no_other(tmp_path, drawn, channels):
    all_of_row = numbered(4, 11, channels=channels, size=28)
    path = tmp_path / "relabelled.png"
    true_labels = torch.tensor([3, 0, 9, 3])
    write_relabelled(path, all_of_row[:, 0], all_of_row[:, 1:].float() / 255, true_labels, CLASSES)
    assert BLUE in colors_in(path)
    figure = drawn[path.name]
    assert seen_values(figure, 11) == [list(range(start, start + 11)) for start in (1, 12, 23, 34)]
    corners = [tuple(image.get_array()[0, 0].tolist()) for image in figure.axes[0].images]
    framed = [divmod(i, 11) for i, corner in enumerate(corners) if corner == BLUE]
    assert framed == [(0, 1 + 3), (1, 1 + 0), (2, 1 + 9), (3, 1 + 3)]
    assert corners.count((255, 255, 255)) == 40
    inside = figure.axes[0].images[4].get_array()[4:-4, 4:-4]
    assert inside.shape == (112, 112, 3) and (inside == 5).all()  # the frame covers nothing
    assert texts(figure)[1:] == ["input", *CLASSES, "true: cat", "true: airplane", "true: truck", "true: cat"]


def test_of_many_classes_the_true_ones_are_shown(tmp_path, drawn):
    names = [f"c{k}" for k in range(100)]
    outputs = numbered(100).expand(2, 100, 1, 8, 8)
    write_relabelled(tmp_path / "relabelled.png", numbered(2), outputs, torch.tensor([98, 5]), names)
    shown = [*range(19), 98]
    expected = [[value, *(k + 1 for k in shown)] for value in (1, 2)]
    assert seen_values(drawn["relabelled.png"], 21) == expected
    assert texts(drawn["relabelled.png"])[1:] == ["input", *(names[k] for k in shown), "true: c98", "true: c5"]
    assert "20 of 100 classes" in texts(drawn["relabelled.png"])[0]


def test_interpolations_go_from_left_to_right(tmp_path, drawn):
    labels = ["cat to dog", "7"]
    write_interpolations(tmp_path / "interpolations.png", numbered(2, 5, channels=3), labels)
    colors_in(tmp_path / "interpolations.png")
    assert seen_values(drawn["interpolations.png"], 5) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert texts(drawn["interpolations.png"])[1:] == ["0%", "25%", "50%", "75%", "100%", *labels]


def test_what_does_not_fit_is_refused(tmp_path):
    images, labels, path = numbered(4), torch.tensor([0, 1, 2, 3]), tmp_path / "figure.png"
    with pytest.raises(ValueError, match="differ in number: 4, 4, 4, 3"):
        write_wrong_labels(path, images, labels, labels[:3], images, CLASSES)
    with pytest.raises(ValueError, match="differ in number: 4, 3, 4"):
        write_reconstructions(path, images, labels, images[:3], CLASSES)
    with pytest.raises(ValueError, match="outputs under 4 labels do not fit 10 class names"):
        write_prior_samples(path, images[:, None], CLASSES)
    with pytest.raises(ValueError, match="outputs under 1 labels do not fit 10 class names"):
        write_relabelled(path, images, images[:, None], labels, CLASSES)
    with pytest.raises(ValueError, match="1 step"):
        write_interpolations(path, images[:, None], ["a"] * 4)
    with pytest.raises(ValueError, match="row_labels: 3 for 2 rows"):
        write_interpolations(path, numbered(2, 2), ["a"] * 3)
    assert not path.exists()


# --- latents ---


def stretched(n: int, n_units: int) -> Tensor:
    """Latents of falling variance along rotated axes, around a mean far from zero."""
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(n_units, n_units, generator=generator))
    return torch.randn(n, n_units, generator=generator) * 0.6 ** torch.arange(n_units) @ rotation + 5


def test_the_latent_map_shows_the_principal_components(tmp_path, drawn):
    latents, labels = stretched(300, 12), torch.arange(300) % 10
    state = torch.get_rng_state()
    write_latent_map(tmp_path / "map.png", latents, labels, CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    colors_in(tmp_path / "map.png")
    figure = drawn["map.png"]
    (points,) = figure.axes[0].collections
    centred = latents.double().numpy() - latents.double().numpy().mean(0)
    left, singular_values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = (left * singular_values)[:, :2]
    seen = np.asarray(points.get_offsets())
    for axis in range(2):
        sign = np.sign(seen[:, axis] @ expected[:, axis])
        np.testing.assert_allclose(seen[:, axis], sign * expected[:, axis], atol=1e-4)
    shares = singular_values**2 / (singular_values**2).sum()
    assert f"hold {shares[:2].sum():.1%}" in figure.axes[0].get_title()
    assert f"({shares[0]:.1%} of the variance)" in figure.axes[0].get_xlabel()
    assert f"({shares[1]:.1%})" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize(("n_classes", "n_entries"), [(2, 2), (10, 10), (20, 20), (33, 21)])
def test_points_have_the_colour_of_their_class_in_the_legend(tmp_path, drawn, n_classes, n_entries):
    names = [f"class $ {k} $" for k in range(n_classes)]
    labels = torch.arange(200) % n_classes
    write_latent_map(tmp_path / "map.png", stretched(200, 3), labels, names)
    figure = drawn["map.png"]
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == (names if n_classes <= 20 else [*names[:20], "13 other classes"])
    colors = [tuple(handle.get_color()) for handle in legend.legend_handles]
    assert len(set(colors)) == n_entries
    seen = figure.axes[0].collections[0].get_facecolors()[:, :3]
    np.testing.assert_allclose(seen, [colors[min(k, n_entries - 1)] for k in labels.tolist()])
    box = legend.get_window_extent()
    assert box.x1 <= figure.bbox.width and box.y0 >= 0 and box.x0 >= figure.axes[0].bbox.x1


def test_of_many_latents_some_are_drawn_from_the_components_of_all(tmp_path, drawn):
    latents = stretched(6000, 4)
    write_latent_map(tmp_path / "map.png", latents, torch.zeros(6000, dtype=torch.long), ["only"])
    ax = drawn["map.png"].axes[0]
    assert len(ax.collections[0].get_offsets()) == 5000
    assert ax.get_title().startswith("Latents of 5,000 of 6,000 images")
    variance = latents.double().var(0, correction=0).sum()
    largest = torch.linalg.eigvalsh(torch.cov(latents.double().T, correction=0))[-1]
    assert f"({largest / variance:.1%} of the variance)" in ax.get_xlabel()


@pytest.mark.parametrize("shape", [(50, 1), (1, 5), (3, 2)])
def test_latents_of_few_units_or_images_are_drawn(tmp_path, drawn, shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).bfloat16()
    write_latent_map(tmp_path / "map.png", latents, torch.zeros(len(latents), dtype=torch.long), ["only"])
    offsets = np.asarray(drawn["map.png"].axes[0].collections[0].get_offsets())
    assert offsets.shape == (len(latents), 2) and np.isfinite(offsets).all()
    if shape[1] == 1:
        assert "(100.0% of the variance)" in drawn["map.png"].axes[0].get_xlabel()


def test_latents_without_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 latents and 2 labels"):
        write_latent_map(tmp_path / "map.png", torch.zeros(3, 2), torch.tensor([0, 1]), CLASSES)
    with pytest.raises(ValueError, match="0 latents"):
        write_latent_map(tmp_path / "map.png", torch.zeros(0, 2), torch.zeros(0), CLASSES)


@pytest.mark.parametrize(
    ("kl", "threshold", "n_active"),
    [
        ([0.5, 2.0, 0.02, 1e-3, 0.0, 1e-9], 0.01, 3),
        ([0.5, 2.0, 0.02, 1e-3, 0.0, 1e-9], 0.1, 2),
        ([0.0, 0.0], 0.01, 0),
        ([3.0], 0.01, 1),
        ([2.0**-i for i in range(512)], 0.01, 7),
    ],
)
def test_active_units_are_counted_and_sorted(tmp_path, drawn, kl, threshold, n_active):
    plot_active_units(tmp_path / "units.png", torch.tensor(kl), threshold)
    colors_in(tmp_path / "units.png")
    ax = drawn["units.png"].axes[0]
    assert ax.get_title().startswith(
        f"{n_active} of {len(kl)} latent units are active (KL above {threshold:g} nats)"
    )
    assert ax.get_title().endswith(f"together {sum(kl):.1f} nats")
    bars = [value for patch in ax.patches for value in patch.get_data().values]
    np.testing.assert_allclose(bars, np.maximum(sorted(kl, reverse=True), threshold / 10), rtol=1e-6)
    assert all(first >= second for first, second in pairwise(bars))
    assert sum(value > threshold for value in bars) == n_active
    low, high = ax.get_ylim()
    assert low < threshold < high and high > max(kl)


def test_no_units_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        plot_active_units(tmp_path / "units.png", torch.zeros(0))
