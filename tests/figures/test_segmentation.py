import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from data.images import masked
from figures import images as image_figures
from figures import segmentation
from figures.segmentation import (
    CLASS_COLORS,
    beside_overlays,
    keep_predictions,
    overlay_masks,
    write_best_and_worst,
    write_data_figures,
    write_overlays,
    write_overlays_over_epochs,
)
from models import segmentation_losses

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph or a squeezed layout is only a warning

COLORS = torch.tensor(list(CLASS_COLORS.values()))


@pytest.fixture
def drawn(monkeypatch) -> dict[str, list[str]]:
    """The texts of the figures as they are written, by file name."""
    seen: dict[str, list[str]] = {}
    save_png = image_figures.save_png

    def save_and_keep(figure: Figure, path: Path) -> None:
        save_png(figure, path)
        seen[path.name] = [text.get_text() for text in figure.axes[0].texts if text.get_text()]

    monkeypatch.setattr(image_figures, "save_png", save_and_keep)
    return seen


def random_pictures(n: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, size, size), and masks with a square of class 1 whose side grows with the picture's number."""
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))
    masks = torch.zeros(n, size, size, dtype=torch.uint8)
    for i in range(n):
        masks[i, : i % size + 1, : i % size + 1] = 1
    return images, masks


# --- overlays ---


def test_a_mask_is_drawn_as_tint_and_two_lines_inside_it():
    image = torch.full((1, 3, 20, 20), 100, dtype=torch.uint8)
    mask = torch.zeros(1, 20, 20, dtype=torch.uint8)
    mask[0, 4:16, 4:16] = 1
    seen = overlay_masks(image, mask, alpha=0.25)
    expected = image.clone()
    expected[0, :, 4:16, 4:16] = 255
    expected[0, :, 5:15, 5:15] = COLORS[0][:, None, None]
    expected[0, :, 6:14, 6:14] = (100 + 0.25 * (COLORS[0] - 100)).round()[:, None, None]
    assert seen.dtype == torch.uint8
    torch.testing.assert_close(seen, expected, rtol=0, atol=0)


def test_the_lines_grow_with_the_picture_and_its_edge_is_no_contour():
    mask = torch.zeros(1, 8, 512, dtype=torch.uint8)
    mask[0, :, :300] = 1
    row = overlay_masks(torch.zeros(1, 3, 8, 512, dtype=torch.uint8), mask, alpha=0.0)[0, :, 3]
    assert (row[:, 298:300] == 255).all()
    assert (row[:, 296:298] == COLORS[0][:, None]).all()
    assert not row[:, :296].any() and not row[:, 300:].any()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_background_is_left_as_it_is_whatever_is_beside_it(alpha):
    images, _ = random_pictures(3, size=40)
    masks = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[torch.randint(0, 4, (3, 10, 10))]
    masks = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    seen = overlay_masks(images, masks, alpha)
    background = (masks == 0)[:, None].expand_as(images)
    assert torch.equal(seen[background], images[background])
    assert not torch.equal(seen, images)


def test_every_class_has_its_colour_and_the_ignored_is_grey_with_stripes():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for k in range(1, 9):
        seen = overlay_masks(image, torch.full((1, 32, 32), k, dtype=torch.uint8), alpha=1.0)
        assert (seen == COLORS[(k - 1) % 7][:, None, None]).all()
    assert len(COLORS.unique(dim=0)) == 7
    ignored = overlay_masks(image, torch.full((1, 32, 32), 255, dtype=torch.uint8), alpha=0.5)
    assert ignored.unique().tolist() == [64, 128]
    assert (ignored[0, 0] == 128).sum() == 32 * 32 / 8


def test_whole_numbers_of_any_type_are_masks():
    images, masks = random_pictures(4)
    assert torch.equal(overlay_masks(images, masks.long()), overlay_masks(images, masks))


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 16, 15), (3, 1, 16, 16)])
def test_masks_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"{shape} do not fit images of (3, 3, 16, 16)")):
        overlay_masks(random_pictures(3)[0], torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(("size", "n_columns", "side"), [(64, 3, 256), (100, 3, 200), (300, 3, 300), (64, 20, 64)])
def test_pictures_beside_their_overlays_are_enlarged_by_a_whole_factor(size, n_columns, side):
    images, masks = random_pictures(2, size)
    seen = beside_overlays(images, [masks, 0 * masks], n_columns)
    assert seen.shape == (6, 3, side, side)
    factor = side // size
    enlarged = np.kron(images.numpy(), np.ones((1, 1, factor, factor), dtype=np.uint8))
    np.testing.assert_array_equal(seen[[0, 3]].numpy(), enlarged)
    np.testing.assert_array_equal(seen[[2, 5]].numpy(), enlarged)  # nothing but background
    assert not np.array_equal(seen[1].numpy(), enlarged[0])


# --- figures ---


def test_the_figures_of_the_data(tmp_path, drawn):
    images, masks = random_pictures(16)
    masks[0, 15] = 255
    channels = torch.tensor([0.25, 0.5, 0.75])
    values = {
        "count": torch.tensor(1234),
        "shape": torch.tensor([3, 96, 128]),
        "mean": channels,
        "std": channels / 2,
    }
    splits = {
        "train": values | {"class_shares": torch.tensor([0.5, 0.25, 0.125])},
        "test": values | {"class_shares": torch.tensor([0.5, 0.25, 0.25])},
    }
    write_data_figures(
        tmp_path, splits, images, masks, ("background", "pet", "border"), torch.rand(5, 3, 16, 16), masks[3:8]
    )
    assert {p.name for p in tmp_path.iterdir()} == {"data_statistics.png", "samples.png", "augmentations.png"}
    table = [re.split(r" {2,}", line) for line in drawn["data_statistics.png"][1:]]
    cells = ["1,234", "96 x 128", "50.0%", "25.0%"]
    rgb = ["0.250 ± 0.125", "0.500 ± 0.250", "0.750 ± 0.375"]
    assert [[cell.strip() for cell in row] for row in table[1:]] == [
        ["train", *cells, "12.5%", "12.5%", *rgb],
        ["test", *cells, "25.0%", "0.0%", *rgb],
    ]
    samples = drawn["samples.png"]
    assert samples[0] == "Training pictures and their masks (pet: blue, border: orange, ignored: grey stripes)"
    of_masks = [text for text in samples if "%" in text]
    assert len(of_masks) == 12
    assert of_masks[0] == "pet 0%, border 0%" and of_masks[-1] == "pet 100%, border 0%"  # from all of the split
    assert "(pet: blue, border: orange)" in drawn["augmentations.png"][0]
    assert drawn["augmentations.png"][1:] == [f"epoch {i}" for i in range(5)]


def test_of_many_classes_the_largest_are_named_and_the_table_stands(tmp_path, drawn):
    images, _ = random_pictures(4)
    masks = torch.zeros(4, 16, 16, dtype=torch.uint8)
    for k in range(1, 13):
        masks[:, k, :k] = k
    masks[3, 13:] = 13
    names = [f"class {k}" for k in range(20)]
    values = {
        "count": torch.tensor(4),
        "shape": torch.tensor([3, 16, 16]),
        "mean": torch.zeros(3),
        "std": torch.zeros(3),
        "class_shares": torch.full((20,), 0.05),
    }
    write_data_figures(tmp_path, {"train": values}, images, masks, names, torch.rand(2, 3, 16, 16), masks[:2])
    samples = [text.replace("\n", " ") for text in drawn["samples.png"]]
    assert "class 12 5%, class 11 4%, class 10 4%" in samples
    assert "class 7: sky blue, 6 more in the same colours" in samples[0]
    rows = [re.split(r" {2,}", line) for line in drawn["data_statistics.png"][1:]]
    assert ["class 19", "5.0%"] in rows


def test_overlays_over_epochs_are_in_the_order_given(tmp_path, drawn):
    images, masks = random_pictures(4)
    path = tmp_path / "new" / "overlays.png"
    write_overlays_over_epochs(path, images, masks, {"epoch 2": masks, "epoch 10": 1 - masks}, "validation")
    assert "validation pictures" in drawn["overlays.png"][0]
    assert drawn["overlays.png"][1:] == ["picture", "true mask", "epoch 2", "epoch 10"]
    with Image.open(path) as picture:
        assert picture.width > 4 * 256 and picture.height > 4 * 256


def test_the_stages_of_a_run_are_spread_over_what_was_kept_of_it(tmp_path, drawn):
    images, masks = random_pictures(12)
    write_overlays(tmp_path, images, masks, updates_per_epoch=10, split="test")
    assert drawn == {}  # nothing was kept
    for step in range(10, 120, 10):
        keep_predictions(tmp_path, step, masks)
    write_overlays(tmp_path, images, masks, updates_per_epoch=10, split="test")
    assert drawn["overlays.png"][3:] == [f"epoch {epoch}" for epoch in (1, 3, 5, 7, 9, 11)]
    assert "test pictures" in drawn["overlays.png"][0]


def test_a_pixel_that_counts_nothing_has_one_value_in_models_data_and_figures():
    """The models import nothing of the data, so they have a name of their own for it."""
    assert segmentation_losses.IGNORE == masked.IGNORE == segmentation.IGNORE


@pytest.mark.parametrize("n_images", [1, 5, 12, 13, 40])
def test_the_worst_come_first_and_none_twice(tmp_path, drawn, n_images):
    images, masks = random_pictures(n_images)
    dice = torch.randperm(n_images, generator=torch.manual_seed(1)) / 100
    names = [f"pet_{i}" for i in range(n_images)]
    write_best_and_worst(tmp_path / "best_and_worst.png", images, masks, masks, dice, names)
    texts = drawn["best_and_worst.png"]
    ranked = sorted(range(n_images), key=lambda i: dice[i])
    expected = ranked if n_images <= 12 else ranked[:6] + ranked[-6:]
    assert [text for text in texts if text.startswith("pet_")] == [names[i] for i in expected]
    assert [text for text in texts if text.startswith("Dice")] == [f"Dice {dice[i]:.3f}" for i in expected]
    labels = [text for text in texts if text in ("worst", "best")]
    assert labels == (["worst"] * 3 + ["best"] * 3 if n_images > 12 else [])
    assert str(n_images) in texts[0]
