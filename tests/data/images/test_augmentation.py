"""Against a plain reference: each augmented image must be one of those that slicing and flipping it can give."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from data.errors import DataError
from data.images.augmentation import Augmentation, Augmenter
from data.images.pixels import normalise

MEAN, STD = torch.tensor([125.3, 122.9, 113.9]), torch.tensor([63.0, 62.1, 66.7])


def images_of(n: int, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def augmenter_of(images: Tensor, seed: int = 0, **settings) -> Augmenter:
    channels = images.shape[1]
    return Augmenter(images, Augmentation(**settings), MEAN[:channels], STD[:channels], seed)


def everything(augmenter: Augmenter, epoch: int = 0) -> Tensor:
    augmenter.draw(epoch)
    return augmenter.batch(torch.arange(augmenter.n_images))


def plainly_normalised(image: Tensor) -> Tensor:
    mean, std = MEAN[: len(image), None, None], STD[: len(image), None, None]
    return (image.float() - mean) / std


def variants(image: Tensor, flips: tuple[bool, ...], padding: int, mode: str) -> dict[tuple, Tensor]:
    """(flipped, top, left) -> every normalised flip and crop of one uint8 image (C, H, W)."""
    height, width = image.shape[1:]
    border = ((0, 0), (padding, padding), (padding, padding))
    found = {}
    for flipped in flips:
        source = plainly_normalised(torch.flip(image, [2]) if flipped else image)
        bordered = torch.from_numpy(np.pad(source.numpy(), border, "constant" if mode == "zero" else mode))
        for top, left in itertools.product(range(2 * padding + 1), repeat=2):
            found[flipped, top, left] = bordered[:, top : top + height, left : left + width]
    return found


def choice_of(augmented: Tensor, choices: dict[tuple, Tensor]) -> tuple:
    """The one variant that the image equals exactly."""
    (found,) = [choice for choice, variant in choices.items() if torch.equal(augmented, variant)]
    return found


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (3, 8, 10), (2, 10, 8)])
@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
@pytest.mark.parametrize(("padding", "mode"), [(0, "reflect"), (1, "reflect"), (3, "reflect"), (3, "zero")])
def test_each_image_is_a_flip_and_crop_of_itself(shape, flip, padding, mode):
    images = images_of(20, *shape)
    augmented = everything(augmenter_of(images, flip=flip, crop_padding=padding, padding_mode=mode), epoch=3)
    assert augmented.shape == images.shape and augmented.dtype == torch.float32
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    flips = (False,) if flip == "none" else (False, True)
    chosen = [choice_of(a, variants(i, flips, padding, mode)) for a, i in zip(augmented, images, strict=True)]
    assert {flipped for flipped, _, _ in chosen} == set(flips)
    shifts = {(top, left) for _, top, left in chosen}
    assert len(shifts) > 5 if padding else shifts == {(0, 0)}


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_cutout_blanks_a_clipped_square_and_nothing_else(side):
    images = images_of(300, 3, 6, 7)
    augmented = everything(augmenter_of(images, cutout=side))
    centres = set()
    for image, result in zip(images, augmented, strict=True):
        plain = plainly_normalised(image)
        matches = []
        for row, column in itertools.product(range(6), range(7)):
            expected = plain.clone()
            top, left = row - side // 2, column - side // 2
            expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
            if torch.equal(result, expected):
                matches.append((row, column))
        assert matches
        centres.update(matches)
    assert len(centres) == 6 * 7


def test_cutout_is_in_the_augmented_image_whose_flip_and_crop_it_leaves_alone():
    images = images_of(50)
    settings = {"flip": "random", "crop_padding": 2, "brightness": 0.2, "contrast": 0.3}
    whole = everything(augmenter_of(images, **settings))
    cut = everything(augmenter_of(images, cutout=4, **settings))
    changed = cut != whole
    assert (cut[changed] == 0).all()
    area = changed.any(1).sum((1, 2))
    assert area.min() >= 4 and area.max() == 16  # of a quarter of the square in a corner, and of all of it


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9)])
@pytest.mark.parametrize(("brightness", "contrast"), [(0.3, 0.0), (0.0, 0.4), (1.0, 1.0)])
def test_jitter_is_brightness_then_contrast_about_the_mean(shape, brightness, contrast):
    images = images_of(200, *shape)
    augmented = everything(augmenter_of(images, brightness=brightness, contrast=contrast)).double()
    mean, std = MEAN[: shape[0], None, None].double(), STD[: shape[0], None, None].double()
    factors = []
    for image, result in zip(images.double(), augmented, strict=True):
        pixels = result * std + mean
        b = pixels.mean() / image.mean()  # contrast keeps the mean
        c = (pixels - pixels.mean()).norm() / (b * (image - image.mean())).norm()
        brighter = image * b
        expected = brighter.mean() + (brighter - brighter.mean()) * c
        torch.testing.assert_close(result, (expected - mean) / std, atol=1e-5, rtol=0)
        factors.append([b, c])
    for strength, factor in zip((brightness, contrast), torch.tensor(factors).T, strict=True):
        assert (factor - 1).abs().max() <= strength + 1e-5
        assert abs(factor.mean() - 1) <= 0.15 * strength + 1e-6
        assert abs(factor.std() - strength / 3**0.5) <= 0.1 * strength + 1e-6  # of a uniform distribution


def test_contrast_of_a_crop_is_about_the_mean_of_the_whole_image():
    images = torch.zeros(100, 1, 4, 4, dtype=torch.uint8)
    images[:, :, :2] = 200  # mean 100; a crop may show three such rows
    pixels = everything(augmenter_of(images, crop_padding=2, contrast=0.5)) * STD[0] + MEAN[0]
    torch.testing.assert_close(pixels.amax((1, 2, 3)) + pixels.amin((1, 2, 3)), torch.full((100,), 200.0))


def test_jitter_leaves_the_zero_border_at_zero():
    images = images_of(50)
    plain = everything(augmenter_of(images, crop_padding=3, padding_mode="zero"))
    jittered = everything(augmenter_of(images, crop_padding=3, padding_mode="zero", brightness=0.5, contrast=0.5))
    assert torch.equal(jittered == 0, plain == 0) and (plain == 0).any()


def test_without_augmentation_it_is_the_evaluation_path_and_the_plain_formula():
    for shape in [(3, 8, 8), (1, 5, 7), (2, 7, 5)]:
        images = images_of(10, *shape)
        expected = torch.stack([plainly_normalised(image) for image in images])
        for layout in (images, images.contiguous(memory_format=torch.channels_last)):
            normalised = normalise(layout, MEAN[: shape[0]], STD[: shape[0]])
            assert torch.equal(normalised, expected)
            assert normalised.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(everything(augmenter_of(layout)), expected)


ALL = {"crop_padding": 2, "flip": "alternating", "cutout": 3, "brightness": 0.2, "contrast": 0.2}


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_an_example_looks_the_same_in_any_batch_process_and_subset(mode):
    images = images_of(70, 3, 8, 7)
    augmenter = augmenter_of(images, padding_mode=mode, **ALL)
    together = everything(augmenter, epoch=4)
    shuffled = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augmenter.batch(shuffled), together[shuffled])
    assert torch.equal(augmenter.batch(torch.tensor([5, 5, 3])), together[[5, 5, 3]])
    assert torch.equal(torch.cat([augmenter.batch(torch.tensor([i])) for i in range(70)]), together)
    another_process = augmenter_of(images, padding_mode=mode, **ALL)
    another_process.draw(9)
    assert torch.equal(everything(another_process, epoch=4), together)
    assert torch.equal(everything(augmenter_of(images[:30], padding_mode=mode, **ALL), epoch=4), together[:30])


def test_epoch_0_is_drawn_at_the_start():
    augmenter = augmenter_of(images_of(20), **ALL)
    at_start = augmenter.batch(torch.arange(20))
    assert torch.equal(everything(augmenter, 0), at_start)


@pytest.mark.parametrize("setting", [{"crop_padding": 2}, {"flip": "random"}, {"cutout": 3}, {"brightness": 0.5}])
def test_epochs_and_seeds_differ(setting):
    images = images_of(40)
    augmenter = augmenter_of(images, **setting)
    drawn = [everything(augmenter, epoch) for epoch in range(3)]
    drawn += [everything(augmenter_of(images, seed=1, **setting), epoch) for epoch in range(2)]
    for a, b in itertools.combinations(drawn, 2):
        changed = (a != b).flatten(1).any(1).float().mean()
        assert changed > 0.25


def test_a_choice_does_not_depend_on_which_others_are_on():
    images = images_of(40)
    flipped = everything(augmenter_of(images, flip="random"))
    cut = everything(augmenter_of(images, flip="random", cutout=1))
    assert (cut != flipped).any(1).flatten(1).sum(1).tolist() == [1] * 40


def flips_of(augmented: Tensor, images: Tensor) -> Tensor:
    """(N,) bool, exact: flipped or not."""
    return torch.tensor(
        [choice_of(a, variants(i, (False, True), 0, "reflect"))[0] for a, i in zip(augmented, images, strict=True)]
    )


def test_alternating_flip_turns_every_image_over_in_each_epoch():
    images = images_of(400, 1, 2, 3)
    augmenter = augmenter_of(images, flip="alternating")
    first = flips_of(everything(augmenter, 0), images)
    assert 160 < first.sum() < 240
    for epoch in (1, 2, 3, 8, 11):
        assert torch.equal(flips_of(everything(augmenter, epoch), images), first ^ (epoch % 2 == 1))
    other = flips_of(everything(augmenter_of(images, flip="alternating", seed=1), 0), images)
    assert 120 < (other ^ first).sum() < 280


def test_random_flip_is_a_fair_coin_each_epoch():
    images = images_of(400, 1, 2, 3)
    augmenter = augmenter_of(images, flip="random")
    flips = torch.stack([flips_of(everything(augmenter, epoch), images) for epoch in range(3)]).float()
    assert ((flips.mean(1) - 0.5).abs() < 0.1).all()
    assert ((torch.corrcoef(flips) - torch.eye(3)).abs() < 0.2).all()


@pytest.mark.parametrize(("flip", "limit"), [("none", 43.0), ("random", 74.9)])  # 1 % of fair draws lie above
def test_all_shifts_and_sides_are_equally_frequent(flip, limit):
    """A pixel's value is its place in the image, so that two of them tell the choice."""
    n, padding, size = 5000, 2, 6
    image = torch.arange(size * size, dtype=torch.uint8).view(1, 1, size, size)
    augmenter = augmenter_of(image.expand(n, 1, size, size), crop_padding=padding, flip=flip)
    places = (everything(augmenter, 1) * STD[0] + MEAN[0]).round().long()[:, 0, padding, padding : padding + 2]
    first, second = places.T
    flipped = second < first
    top, left = first // size, torch.where(flipped, size - 1 - first % size, first % size)
    n_cells = 25 if flip == "none" else 50
    counts = torch.bincount(flipped * 25 + top * 5 + left, minlength=n_cells)
    assert len(counts) == n_cells and (counts > 0).all()
    assert ((counts - n / n_cells) ** 2).sum() / (n / n_cells) < limit


def test_the_global_generators_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    everything(augmenter_of(images_of(10), **ALL), epoch=2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_the_images_are_neither_changed_nor_kept():
    images = images_of(10)
    before = images.clone()
    augmenter = augmenter_of(images, **ALL)
    augmented = everything(augmenter)
    assert torch.equal(images, before)
    images.zero_()
    assert torch.equal(everything(augmenter), augmented)


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("--crop_padding", {"crop_padding": -1}),
        ("--padding_mode", {"padding_mode": "mirror"}),
        ("--flip", {"flip": "vertical"}),
        ("--cutout", {"cutout": -2}),
        ("--brightness", {"brightness": -0.1}),
        ("--brightness", {"brightness": 1.1}),
        ("--contrast", {"contrast": float("nan")}),
    ],
)
def test_a_setting_out_of_range_is_named(flag, settings):
    with pytest.raises(DataError, match=flag) as error:
        Augmentation(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_a_border_or_square_larger_than_the_images_is_named(mode):
    images = images_of(3, 3, 6, 9)
    with pytest.raises(DataError, match=r"--crop_padding 6 is too large for images of 6x9 pixels"):
        augmenter_of(images, crop_padding=6, padding_mode=mode)
    with pytest.raises(DataError, match=r"--cutout 7 is too large for images of 6x9 pixels"):
        augmenter_of(images, cutout=7)
    everything(augmenter_of(images, crop_padding=5, padding_mode=mode, cutout=6))


def test_a_preview_shows_one_image_as_the_first_epochs_do():
    images = images_of(6)
    augmenter = augmenter_of(images, crop_padding=2, flip="random")
    views = augmenter.preview(image_id=4, n_epochs=5)
    assert views.shape == (5, 3, 8, 8) and views.min() >= 0 and views.max() <= 1
    for epoch, view in enumerate(views):
        augmenter.draw(epoch)
        (batch,) = augmenter.batch(torch.tensor([4]))
        torch.testing.assert_close(view, (batch * STD[:, None, None] + MEAN[:, None, None]) / 255)
    plain = augmenter_of(images).preview(image_id=4, n_epochs=1)
    torch.testing.assert_close(plain[0], images[4] / 255)
