"""Pictures whose values are the places of their pixels tell which window an augmented picture shows."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from data.errors import DataError
from data.images.joint_augmentation import JointAugmentation, JointAugmenter
from data.images.pixels import normalise

MEAN, STD = torch.tensor([125.3, 122.9, 113.9]), torch.tensor([63.0, 62.1, 66.7])
GEOMETRY = {"flip": True, "scale": 0.6, "aspect": 0.3, "shift": 0.2, "rotation": 40.0}
COLOURS = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 60.0}
QUALITY = {"gamma": 0.8, "low_resolution": 0.7}


def images_of(n: int, size: int = 12) -> Tensor:
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def masks_of(n: int, size: int = 12) -> Tensor:
    values = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)
    return values[torch.randint(4, (n, size, size), generator=torch.Generator().manual_seed(n + 1))]


def augmenter_of(images: Tensor, masks: Tensor | None = None, seed: int = 0, **settings) -> JointAugmenter:
    masks = masks_of(len(images), images.shape[-1]) if masks is None else masks
    return JointAugmenter(images, masks, JointAugmentation(**settings), MEAN, STD, seed)


def everything(augmenter: JointAugmenter, epoch: int = 0) -> tuple[Tensor, Tensor]:
    augmenter.draw(epoch)
    return augmenter.batch(torch.arange(augmenter.n_images))


def pixels_of(batch: Tensor) -> Tensor:
    return batch.double() * STD[:, None, None].double() + MEAN[:, None, None].double()


def places(n: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images whose red is 3 times the column and green 3 times the row, and masks of the column and of the row."""
    index = torch.arange(size, dtype=torch.uint8)
    columns, rows = index.expand(n, size, size), index[:, None].expand(n, size, size)
    return torch.stack([3 * columns, 3 * rows, torch.zeros_like(rows)], 1), columns, rows


def windows_of(augmented: Tensor, places_size: int = 0) -> np.ndarray:
    """(n, 2, 3) of augmented `places`: in -1 to 1, output (x, y, 1) -> the place shown, fitted to the middle.

    `places_size` is the side of the `places`, where it is not that of `augmented`.
    """
    n, _, size, _ = augmented.shape
    shown = pixels_of(augmented)[:, :2].numpy() / 3  # column and row, as pixel indices
    shown = (2 * shown + 1) / (places_size or size) - 1
    axis = (2 * np.arange(size) + 1) / size - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    middle = (abs(x) < 0.25) & (abs(y) < 0.25)  # shows no mirror image
    design = np.stack([x[middle], y[middle], np.ones(middle.sum())], 1)
    targets = shown[:, :, middle].transpose(2, 0, 1).reshape(len(design), -1)
    solution, residuals, *_ = np.linalg.lstsq(design, targets, rcond=None)
    assert residuals.max() < 1e-6
    return solution.T.reshape(n, 2, 3)


@pytest.mark.parametrize("size", [12, 17])
def test_without_augmentation_it_is_the_evaluation_path(size):
    images, masks = images_of(9, size), masks_of(9, size)
    augmented, same_masks = everything(augmenter_of(images, masks))
    assert torch.equal(augmented, normalise(images, MEAN, STD)) and torch.equal(same_masks, masks)
    assert augmented.is_contiguous(memory_format=torch.channels_last) and augmented.dtype == torch.float32
    assert same_masks.dtype == torch.uint8


@pytest.mark.parametrize("size", [12, 17])
def test_flip_is_exact_and_takes_the_mask_along(size):
    images, masks = images_of(300, size), masks_of(300, size)
    augmented, flipped_masks = everything(augmenter_of(images, masks, flip=True), epoch=2)
    plain = normalise(images, MEAN, STD)
    flipped = (augmented == plain.flip(-1)).flatten(1).all(1)
    assert 120 < flipped.sum() < 180
    assert torch.equal(augmented[~flipped], plain[~flipped])
    assert torch.equal(flipped_masks[flipped], masks[flipped].flip(-1))
    assert torch.equal(flipped_masks[~flipped], masks[~flipped])


@pytest.mark.parametrize("settings", [{name: value} for name, value in GEOMETRY.items()] + [GEOMETRY])
def test_image_and_mask_show_the_same_place(settings):
    """Everywhere, also in the mirror image: a mask's value is that of the pixel nearest to the place shown."""
    images, columns, rows = places(40, 33)
    augmented, of_columns = everything(augmenter_of(images, columns, **settings))
    of_rows = everything(augmenter_of(images, rows, **settings))[1]
    shown = pixels_of(augmented)[:, :2] / 3
    assert (of_columns != columns).any()
    for mask, place in ((of_columns, shown[:, 0]), (of_rows, shown[:, 1])):
        assert (mask - place).abs().max() < 0.5 + 1e-4


def blobs_of(n: int, size: int) -> Tensor:
    """Masks (n, size, size) of 0 and 1 with edges of every direction, in odd and in even columns and rows."""
    centre = torch.rand(n, 2, 1, 1, generator=torch.Generator().manual_seed(n)) * size
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    round_ones = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < (size / 3) ** 2
    square_ones = ((rows - centre[:, 0]).abs() < size / 4) & ((columns - centre[:, 1]).abs() < size / 3)
    return torch.where(torch.arange(n)[:, None, None] % 2 == 0, round_ones, square_ones).to(torch.uint8)


@pytest.mark.parametrize("settings", [{}, {"flip": True}, GEOMETRY], ids=["untouched", "flipped", "moved"])
@pytest.mark.parametrize(("side", "size"), [(32, 16), (64, 16), (33, 16), (32, 64)])
def test_at_another_size_a_masks_edges_lie_where_the_pictures_are(side, size, settings):
    masks = blobs_of(200, side)
    augmenter = augmenter_of(200 * masks[:, None].expand(-1, 3, -1, -1), masks, **settings)
    pictures, shown = augmenter.batch(torch.arange(200), size)
    shares, shown = pixels_of(pictures)[:, 0] / 200, shown.double()  # how much of a pixel the blob covers
    assert shares.shape == shown.shape == (200, size, size)
    if "scale" not in settings:
        assert torch.equal(shown[shares > 0.51], torch.ones_like(shown[shares > 0.51]))
        assert torch.equal(shown[shares < 0.49], torch.zeros_like(shown[shares < 0.49]))
    positions = torch.arange(size, dtype=torch.float64)
    areas = shares.sum((1, 2)) - shown.sum((1, 2))
    assert abs(areas.mean()) < 0.03 * shares.sum((1, 2)).mean()
    for axis in (1, 2):  # centres of gravity, in pixels of the size shown
        of_picture, of_mask = ((x.sum(axis) @ positions) / x.sum((1, 2)).clamp(min=1e-9) for x in (shares, shown))
        assert abs((of_picture - of_mask)[shown.sum((1, 2)) > 9].mean()) < 0.05


@pytest.mark.parametrize("axis", [1, 2])
def test_at_half_the_size_a_straight_edge_between_two_pixels_goes_to_both_in_turn(axis):
    masks = (torch.arange(16) < 7).to(torch.uint8).expand(3, 16, 16)
    masks = masks.transpose(1, 2).contiguous() if axis == 1 else masks.contiguous()
    shown = everything_at(augmenter_of(images_of(3, 16), masks), 8)[1].double()
    assert shown.mean((0, 3 - axis)).tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]
    assert set(everything_at(augmenter_of(images_of(3, 16), 255 * masks), 8)[1].flatten().tolist()) == {0, 255}


def everything_at(augmenter: JointAugmenter, size: int) -> tuple[Tensor, Tensor]:
    return augmenter.batch(torch.arange(augmenter.n_images), size)


def test_masks_get_no_new_values():
    images, masks = images_of(60), masks_of(60)
    masks[:30] = torch.tensor([0, 255], dtype=torch.uint8)[torch.arange(12) % 2]
    augmented = everything(augmenter_of(images, masks, **GEOMETRY, **COLOURS))[1]
    assert set(augmented[:30].flatten().tolist()) == {0, 255}
    assert set(augmented.flatten().tolist()) == {0, 1, 2, 255}
    assert (augmented != masks).any()


def mirrored(place: np.ndarray, size: int) -> np.ndarray:
    """Pixel coordinates outside of -0.5 to size - 0.5, mirrored at these edges."""
    place = (place + 0.5) % (2 * size)
    return np.minimum(place, 2 * size - place) - 0.5


def test_every_pixel_is_the_bilinear_one_of_the_window():
    n, size = 20, 40
    settings = {name: value for name, value in GEOMETRY.items() if name != "flip"}
    windows = windows_of(everything(augmenter_of(places(n, size)[0], **settings))[0])
    images = images_of(n, 5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    augmented = pixels_of(everything(augmenter_of(images, **settings))[0]).numpy()
    axis = (2 * np.arange(size) + 1) / size - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    is_mirrored = np.zeros((n, size, size), bool)
    for i in range(n):
        column, row = (((w[0] * x + w[1] * y + w[2] + 1) * size - 1) / 2 for w in windows[i])
        is_mirrored[i] = (np.abs(column - (size - 1) / 2) > size / 2) | (np.abs(row - (size - 1) / 2) > size / 2)
        column, row = mirrored(column, size), mirrored(row, size)
        padded = np.pad(images[i].numpy().astype(float), ((0, 0), (1, 1), (1, 1)), "edge")
        left, top = np.floor(column).astype(int), np.floor(row).astype(int)
        right, bottom = column - left, row - top
        expected = sum(
            weight * padded[:, top + 1 + down, left + 1 + across]
            for down, across, weight in (
                (0, 0, (1 - bottom) * (1 - right)),
                (0, 1, (1 - bottom) * right),
                (1, 0, bottom * (1 - right)),
                (1, 1, bottom * right),
            )
        )
        np.testing.assert_allclose(augmented[i], expected, atol=0.1)
    assert 0.05 < is_mirrored.mean() < 0.5


def is_uniform(draws: np.ndarray, largest: float, inexact: float = 1e-3) -> bool:
    """Whether n draws, measured to that share of `largest`, are plausibly of U(-largest, largest)."""
    error = largest / np.sqrt(3 * len(draws))  # of the mean
    return (
        np.abs(draws).max() <= largest * (1 + inexact)
        and np.abs(draws).max() > 0.97 * largest
        and abs(draws.mean()) < 3.5 * error
        and abs(draws.std() - largest / np.sqrt(3)) < 3.5 * error
    )


def test_statistics_of_the_window():
    settings = {"scale": 0.25, "aspect": 0.2, "shift": 0.1, "rotation": 20.0}
    windows = windows_of(everything(augmenter_of(places(600, 40)[0], **settings), epoch=1)[0])
    width, height = np.hypot(*windows[:, :, 0].T), np.hypot(*windows[:, :, 1].T)
    np.testing.assert_allclose((windows[:, :, 0] * windows[:, :, 1]).sum(1), 0, atol=1e-4)  # not sheared
    assert (np.linalg.det(windows[:, :, :2]) > 0).all()  # nor flipped
    drawn = {
        "scale": (np.log(width * height) / 2, np.log(1.25)),
        "aspect": (np.log(width / height), np.log(1.2)),
        "rotation": (np.degrees(np.arctan2(windows[:, 1, 0], windows[:, 0, 0])), 20),
        "shift in x": (windows[:, 0, 2] / 2, 0.1),
        "shift in y": (windows[:, 1, 2] / 2, 0.1),
    }
    for name, (draws, largest) in drawn.items():
        assert is_uniform(draws, largest), name
    correlations = np.corrcoef([draws for draws, _ in drawn.values()]) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 0.15


def test_colours_are_brightness_then_contrast_then_saturation():
    images = images_of(400, 6)
    originals = images.double()
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.double)[:, None, None]

    def jittered(**settings) -> Tensor:
        return pixels_of(everything(augmenter_of(images, **settings))[0])

    def norm(x: Tensor) -> Tensor:
        return x.square().sum((1, 2, 3), keepdim=True).sqrt()

    mean, grey = originals.mean((1, 2, 3), keepdim=True), (originals * luma).sum(1, keepdim=True)
    b = jittered(brightness=0.3).mean((1, 2, 3), keepdim=True) / mean
    c = norm(jittered(contrast=0.4) - mean) / norm(originals - mean)
    s = norm(jittered(saturation=0.5) - grey) / norm(originals - grey)
    expected = originals * b
    expected = expected.mean((1, 2, 3), keepdim=True) + c * (expected - expected.mean((1, 2, 3), keepdim=True))
    expected_grey = (expected * luma).sum(1, keepdim=True)
    expected = expected_grey + s * (expected - expected_grey)
    torch.testing.assert_close(jittered(brightness=0.3, contrast=0.4, saturation=0.5), expected, atol=1e-3, rtol=0)
    for factor, strength in ((b, 0.3), (c, 0.4), (s, 0.5)):
        assert is_uniform(factor.flatten().numpy() - 1, strength)


def test_hue_turns_colours_about_the_greys():
    """Against colorsys, whose YIQ has coefficients rounded to two or three digits."""
    images = images_of(300, 3)
    turned = pixels_of(everything(augmenter_of(images, hue=90.0))[0])
    luma, i, q = colorsys.rgb_to_yiq(*images.double().unbind(1))
    luma_after, i_after, q_after = colorsys.rgb_to_yiq(*turned.unbind(1))
    torch.testing.assert_close(luma_after, luma, atol=2.0, rtol=0)
    before, after = torch.complex(i, q), torch.complex(i_after, q_after)
    torch.testing.assert_close(after.abs(), before.abs(), atol=2.0, rtol=0)
    clear = before.abs() > 60
    angles = [float((after[k] / before[k])[clear[k]].angle().median()) for k in range(len(images))]
    assert all(abs((after[k] / before[k])[clear[k]].angle() - angles[k]).max() < 0.05 for k in range(len(images)))
    assert is_uniform(np.degrees(angles), 90.0, inexact=0.005)  # rounded coefficients turn by 0.4 degrees

    grey = images[:, :1].expand(-1, 3, -1, -1)
    for settings in ({"hue": 90.0}, {"hue": 90.0, "saturation": 1.0}):
        shown = pixels_of(everything(augmenter_of(grey, **settings))[0])
        torch.testing.assert_close(shown, grey.double(), atol=1e-3, rtol=0)


def test_hue_turns_what_the_other_colours_have_made():
    images = images_of(40, 6)
    alone, with_others, others = (
        pixels_of(everything(augmenter_of(images, **settings))[0])
        for settings in ({"hue": 180.0}, COLOURS | {"hue": 180.0}, COLOURS | {"hue": 0.0})
    )
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.double)[:, None, None]
    for k in range(len(images)):  # the linear map of one image's colours, fitted
        pixels = images[k].double().flatten(1).T
        turn = torch.linalg.lstsq(pixels, alone[k].flatten(1).T).solution
        expected = (others[k].flatten(1).T @ turn).T.view_as(others[k])
        torch.testing.assert_close(with_others[k], expected, atol=0.05, rtol=0)
    torch.testing.assert_close(
        (with_others * luma).sum(1), (others * luma).sum(1), atol=0.05, rtol=0
    )  # luma is kept


def test_colours_never_touch_the_masks():
    images = images_of(50)
    plain, with_colours = (everything(augmenter_of(images, **GEOMETRY, **more)) for more in ({}, COLOURS | QUALITY))
    assert torch.equal(plain[1], with_colours[1]) and not torch.equal(plain[0], with_colours[0])


def test_gamma_raises_values_to_a_power_of_each_image_before_its_other_colours():
    images = images_of(300, 6)
    shares = images.double() / 255
    raised = pixels_of(everything(augmenter_of(images, gamma=0.5))[0]) / 255
    clear = (shares > 0.2) & (shares < 0.8)
    powers = [float((raised[k].log() / shares[k].log())[clear[k]].median()) for k in range(len(images))]
    expected = shares ** torch.tensor(powers, dtype=torch.double)[:, None, None, None]
    torch.testing.assert_close(raised, expected, atol=1e-3, rtol=0)
    assert is_uniform(np.log(powers), np.log(1.5))
    brightened = pixels_of(everything(augmenter_of(images, gamma=0.5, brightness=0.3))[0])
    factors = pixels_of(everything(augmenter_of(images, brightness=0.3))[0]).sum((1, 2, 3)) / images.sum((1, 2, 3))
    torch.testing.assert_close(brightened, 255 * raised * factors[:, None, None, None], atol=0.01, rtol=0)


def test_low_resolution_keeps_some_rows_and_columns_and_is_linear_between_them():
    n, size = 200, 24
    images = images_of(n, size)
    shown = pixels_of(everything(augmenter_of(images, low_resolution=0.5))[0])
    untouched = [k for k in range(n) if torch.equal(shown[k].round(), images[k].double())]
    assert 0.4 < len(untouched) / n < 0.65
    n_kept = []
    for k in set(range(n)) - set(untouched):
        found = [
            kept
            for kept in range(size // 2, size + 1)
            if torch.allclose(shown[k], reduced(images[k].double(), kept), atol=0.01)
        ]
        assert len(found) == 1, k
        n_kept += found
    assert min(n_kept) == size // 2 and max(n_kept) >= size - 1


def reduced(image: Tensor, n_kept: int) -> Tensor:
    """By torch's own resizing: the nearest pixels of n_kept rows and columns, and back."""
    small = torch.nn.functional.interpolate(image[None], (n_kept, n_kept), mode="nearest-exact")
    return torch.nn.functional.interpolate(small, image.shape[1:], mode="bilinear")[0]


@pytest.mark.parametrize("size", [12, 24])
def test_low_resolution_is_that_of_the_size_that_is_drawn(size):
    images, masks = blobs_of(40, 24)[:, None].expand(-1, 3, -1, -1) * 200, blobs_of(40, 24)
    augmenter = augmenter_of(images, masks, low_resolution=1.0)
    plain = augmenter_of(images, masks)
    shown, shown_masks = augmenter.batch(torch.arange(40), size)
    whole, whole_masks = plain.batch(torch.arange(40), size)
    assert torch.equal(shown_masks, whole_masks) and shown.shape == whole.shape
    assert 0 < (pixels_of(shown) - pixels_of(whole)).abs().mean() < 20


def test_a_uniform_picture_stays_uniform():
    """There are no blank corners, however far the window lies outside."""
    images = torch.full((50, 3, 12, 12), 200, dtype=torch.uint8)
    augmented = everything(augmenter_of(images, scale=1.0, aspect=1.0, shift=0.5, rotation=180.0))[0]
    torch.testing.assert_close(pixels_of(augmented), torch.full_like(augmented, 200).double(), atol=1e-3, rtol=0)


def test_a_preview_is_one_image_in_each_epoch():
    augmenter = augmenter_of(images_of(9), **GEOMETRY, **COLOURS)
    pictures, masks = augmenter.preview(4, n_epochs=3)
    assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.shape == (3, 3, 12, 12)
    for epoch in range(3):
        batch, batch_masks = everything(augmenter, epoch)
        torch.testing.assert_close(
            255 * pictures[epoch], pixels_of(batch[4]).clamp(0, 255).float(), atol=1e-3, rtol=0
        )
        assert torch.equal(masks[epoch], batch_masks[4])
    assert not torch.equal(pictures[0], pictures[1])


def test_an_example_looks_the_same_in_any_batch_process_and_subset():
    images, masks = images_of(70, 13), masks_of(70, 13)
    augmenter = augmenter_of(images, masks, **GEOMETRY, **COLOURS, **QUALITY)
    together = everything(augmenter, epoch=4)
    another_process = augmenter_of(images, masks, **GEOMETRY, **COLOURS, **QUALITY)
    another_process.draw(9)
    of_another_process = everything(another_process, epoch=4)
    of_subset = everything(augmenter_of(images[:30], masks[:30], **GEOMETRY, **COLOURS, **QUALITY), epoch=4)
    shuffled = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    of_shuffled = augmenter.batch(shuffled)
    singly = [
        torch.cat(parts) for parts in zip(*(augmenter.batch(torch.tensor([i])) for i in range(70)), strict=True)
    ]
    for k in range(2):  # images, masks
        assert torch.equal(of_shuffled[k], together[k][shuffled])
        assert torch.equal(augmenter.batch(torch.tensor([5, 5, 3]))[k], together[k][[5, 5, 3]])
        assert torch.equal(singly[k], together[k])
        assert torch.equal(of_another_process[k], together[k])
        assert torch.equal(of_subset[k], together[k][:30])


def test_epoch_0_is_drawn_at_the_start():
    augmenter = augmenter_of(images_of(20), **GEOMETRY)
    at_start = augmenter.batch(torch.arange(20))[0]
    assert torch.equal(everything(augmenter, 0)[0], at_start)


@pytest.mark.parametrize("setting", [{name: value} for name, value in (GEOMETRY | COLOURS | QUALITY).items()])
def test_epochs_and_seeds_differ(setting):
    images = images_of(40)
    augmenter = augmenter_of(images, **setting)
    drawn = [everything(augmenter, epoch)[0] for epoch in range(2)]
    drawn += [everything(augmenter_of(images, seed=1, **setting), epoch)[0] for epoch in range(2)]
    for a, b in itertools.combinations(drawn, 2):
        assert (a != b).flatten(1).any(1).float().mean() > 0.25


def test_a_choice_does_not_depend_on_which_others_are_on():
    images = places(30, 40)[0]
    alone, together = (
        windows_of(everything(augmenter_of(images, **settings))[0])
        for settings in ({"shift": 0.1}, {"shift": 0.1, "rotation": 20.0, "scale": 0.2})
    )
    np.testing.assert_allclose(alone[:, :, 2], together[:, :, 2], atol=1e-4)


def test_the_global_generators_and_the_data_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    images, masks = images_of(10), masks_of(10)
    before = images.clone(), masks.clone()
    everything(augmenter_of(images, masks, **GEOMETRY, **COLOURS), epoch=2)
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", -0.1),
        ("scale", 1.1),
        ("aspect", 2),
        ("shift", 0.6),
        ("rotation", -1),
        ("rotation", 181),
        ("brightness", 1.1),
        ("contrast", float("nan")),
        ("saturation", -0.2),
        ("hue", 190),
        ("background_mix", 1.5),
        ("cutmix", -1),
        ("gamma", 1.5),
        ("low_resolution", -0.5),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(DataError, match=f"^--{name} .*between 0 and") as error:
        JointAugmentation(**{name: value})
    assert "\n" not in str(error.value)


def test_at_half_the_size_a_pixel_is_the_mean_of_the_four_it_covers_and_shows_the_same_window():
    images, masks = images_of(5), masks_of(5)
    plain = augmenter_of(images, masks)
    small, small_masks = plain.batch(torch.arange(5), 6)
    assert small.shape == (5, 3, 6, 6) and small_masks.shape == (5, 6, 6) and small_masks.dtype == torch.uint8
    torch.testing.assert_close(
        pixels_of(small), torch.nn.functional.avg_pool2d(images.double(), 2), atol=1e-3, rtol=0
    )
    assert set(small_masks.unique().tolist()) <= set(masks.unique().tolist())
    augmented = augmenter_of(places(40, 24)[0], masks_of(40, 24), **GEOMETRY)
    whole, _ = augmented.batch(torch.arange(40))
    half, _ = augmented.batch(torch.arange(40), 12)
    np.testing.assert_allclose(
        windows_of(half, places_size=24), windows_of(whole, places_size=24), rtol=0, atol=1e-5
    )


def test_background_mix_shows_another_background_where_both_images_have_it():
    n, generator = 300, torch.Generator().manual_seed(0)
    levels = torch.arange(n, dtype=torch.int64)
    code = torch.stack([levels % 256, levels // 256, torch.full_like(levels, 7)], 1).to(torch.uint8)
    images = code[:, :, None, None].expand(n, 3, 16, 16).contiguous()  # a flat colour tells which image it is
    masks = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[torch.randint(4, (n, 16, 16), generator=generator)]
    mixed, same_masks = everything(augmenter_of(images, masks, background_mix=0.5))
    assert torch.equal(same_masks, masks)
    pixels = pixels_of(mixed).round().long()
    shown = pixels[:, 0] + 256 * pixels[:, 1]  # (n, 16, 16): the image that each pixel comes from
    foreign = shown != levels[:, None, None]
    with_another = foreign.flatten(1).any(1).nonzero()[:, 0].tolist()
    assert 0.4 < len(with_another) / n < 0.6
    partners = []
    for i in with_another:
        (partner,) = shown[i][foreign[i]].unique().tolist()  # one other image
        assert torch.equal(foreign[i], (masks[i] == 0) & (masks[partner] == 0))
        partners.append(partner)
    assert len(set(partners)) > len(partners) / 2


def test_a_mixed_background_is_augmented_as_its_own_image_is():
    images, masks = images_of(60), torch.zeros(60, 12, 12, dtype=torch.uint8)  # nothing but background
    augmenter = augmenter_of(images, masks, background_mix=1.0, **GEOMETRY, **COLOURS)
    mixed, plain = everything(augmenter, 2)[0], everything(augmenter_of(images, masks, **GEOMETRY, **COLOURS), 2)[0]
    sources = [(plain == picture).flatten(1).all(1).nonzero()[:, 0].tolist() for picture in mixed]
    assert all(len(source) == 1 and source != [i] for i, source in enumerate(sources))


def test_cutmix_shows_a_rectangle_of_another_augmented_image_and_its_mask():
    n = 400
    levels = torch.arange(n, dtype=torch.int64)
    code = torch.stack([levels % 256, levels // 256, torch.full_like(levels, 7)], 1).to(torch.uint8)
    images = code[:, :, None, None].expand(n, 3, 16, 16).contiguous()  # a flat colour tells which image it is
    masks = (levels % 251).to(torch.uint8)[:, None, None].expand(n, 16, 16).contiguous()
    mixed, mixed_masks = everything(augmenter_of(images, masks, cutmix=0.5, flip=True, scale=0.4))
    pixels = pixels_of(mixed).round().long()
    shown = pixels[:, 0] + 256 * pixels[:, 1]  # (n, 16, 16): the image that each pixel comes from
    assert torch.equal(mixed_masks, (shown % 251).to(torch.uint8))
    foreign = shown != levels[:, None, None]
    share = foreign.flatten(1).any(1).float().mean()
    assert 0.4 < share < 0.52  # of 0.5, those whose rectangle covers no pixel's centre excepted
    partners = {}
    for i in foreign.flatten(1).any(1).nonzero()[:, 0].tolist():
        (partners[i],) = shown[i][foreign[i]].unique().tolist()  # one other image
        rows, columns = foreign[i].any(1), foreign[i].any(0)
        assert torch.equal(foreign[i], rows[:, None] & columns)
        for line in (rows, columns):
            at = line.nonzero()[:, 0]
            assert len(at) == at[-1] - at[0] + 1  # without a gap
    assert len(set(partners.values())) > len(partners) / 2
    area = foreign.float().mean().item()
    assert 0.08 < area < 0.25  # about 0.5 x 0.5, less what the edges cut off


@pytest.mark.parametrize("mix", ["cutmix", "background_mix"])
def test_a_single_image_is_mixed_with_nothing_and_no_other_choice_moves(mix):
    images, masks = images_of(1), masks_of(1)
    alone, plain = (augmenter_of(images, masks, **{mix: share}, **GEOMETRY, **COLOURS) for share in (1.0, 0.0))
    assert torch.equal(everything(alone, 3)[0], everything(plain, 3)[0])
    assert torch.equal(everything(alone, 3)[1], everything(plain, 3)[1])
