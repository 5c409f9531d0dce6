import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from data.images.masked import BACKGROUND, BORDER, PET, MaskedImages, masks_from_trimaps
from data.images.textured_shapes import textured_shapes


@pytest.fixture(scope="module")
def shapes() -> tuple[MaskedImages, MaskedImages]:
    return textured_shapes(n_train=200, n_test=100)


def test_shapes_and_types(shapes):
    for split, n in zip(shapes, (200, 100), strict=True):
        assert split.images.shape == (n, 3, 64, 64) and split.trimaps.shape == (n, 64, 64)
        assert split.images.dtype == split.trimaps.dtype == torch.uint8
        assert len(split) == n and len(set(split.names)) == n
    assert not set(shapes[0].names) & set(shapes[1].names)
    assert textured_shapes(3, 2, image_size=48)[1].images.shape == (2, 3, 48, 48)


def test_deterministic_by_seed_and_independent_of_the_other_split(shapes):
    again = textured_shapes(n_train=200, n_test=5)[0]
    assert torch.equal(again.images, shapes[0].images) and torch.equal(again.trimaps, shapes[0].trimaps)
    assert torch.equal(textured_shapes(n_train=5, n_test=100)[1].images, shapes[1].images)
    assert not torch.equal(textured_shapes(n_train=200, n_test=0, seed=1)[0].images, shapes[0].images)
    images = torch.cat([shapes[0].images, shapes[1].images])
    assert len({image.numpy().tobytes() for image in images}) == 300


def is_near(region: Tensor, pixels: int) -> Tensor:
    """(N, S, S) bool -> where the region is at most so many steps away, a step going to any of 8 neighbours."""
    return max_pool2d(region[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0


def test_the_border_is_a_band_two_to_three_pixels_wide_between_animal_and_background(shapes):
    trimaps = torch.cat([split.trimaps for split in shapes])
    pet, background, border = (trimaps == value for value in (PET, BACKGROUND, BORDER))
    assert (pet | background | border).all()
    assert not (is_near(pet, 1) & background).any()  # no gap in the band
    assert not (border & ~is_near(background, 3))[:, 3:-3, 3:-3].any()
    assert not (border & ~is_near(pet, 3))[:, 3:-3, 3:-3].any()

    # Area over length: the mean width. A curve has the length pi / 4 times the pixel sides along it.
    inside = masks_from_trimaps(trimaps, "binary", "background").int()
    sides = inside.diff(dim=1).abs().sum((1, 2)) + inside.diff(dim=2).abs().sum((1, 2))
    whole = masks_from_trimaps(trimaps, "binary", "pet").int()
    sides = (sides + whole.diff(dim=1).abs().sum((1, 2)) + whole.diff(dim=2).abs().sum((1, 2))) / 2
    width = border.sum((1, 2)) / (sides * np.pi / 4)
    assert width.min() > 2 and width.max() < 3


def test_one_animal_of_a_fair_size_in_each_picture(shapes):
    share = masks_from_trimaps(shapes[0].trimaps, "binary", "pet").float().mean((1, 2))
    assert share.min() > 0.12 and share.max() < 0.6 and 0.25 < share.mean() < 0.4
    for animal in masks_from_trimaps(shapes[0].trimaps, "binary", "pet")[:40].bool():
        reached = torch.zeros_like(animal)
        reached.view(-1)[animal.flatten().int().argmax()] = True
        for _ in range(200):
            reached = is_near(reached[None], 1)[0] & animal
        assert torch.equal(reached, animal)


def test_animal_and_background_have_the_same_colours_on_average(shapes):
    images, trimaps = shapes[0].images.float(), shapes[0].trimaps[:, None]
    inside, outside = (
        (images * region).sum((2, 3)) / region.sum((2, 3)) for region in (trimaps == PET, trimaps == BACKGROUND)
    )
    difference = (inside - outside).abs().mean()
    assert difference < 12  # of colours that differ by 76 to 179 in each channel
    assert (images.flatten(2).std(2) > 25).all()


def dice(prediction: Tensor, truth: Tensor) -> float:
    return (2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())).item()


def dice_of_linear_model(features: list[Tensor], masks: list[Tensor]) -> float:
    """Least squares on (N, K, S, S) features of each pixel, at the threshold that is best on the training set."""
    train, test = (torch.cat([x, torch.ones_like(x[:, :1])], 1).movedim(1, -1).flatten(0, 2) for x in features)
    train_mask, test_mask = (mask.flatten() for mask in masks)
    weights = torch.linalg.lstsq(train, train_mask[:, None].float()).solution
    train, test = (train @ weights)[:, 0], (test @ weights)[:, 0]
    threshold = max(np.linspace(0, 1, 41), key=lambda level: dice(train > level, train_mask))
    return dice(test > threshold, test_mask)


def coherence(images: Tensor) -> Tensor:
    """(N, 1, S, S), 0 to 1: how much the gradients around a pixel have one direction (the structure tensor's)."""
    x = images.float()
    dx, dy = x[:, :, 1:-1, 2:] - x[:, :, 1:-1, :-2], x[:, :, 2:, 1:-1] - x[:, :, :-2, 1:-1]
    products = torch.stack([(dx * dx).sum(1), (dy * dy).sum(1), (dx * dy).sum(1)], 1)
    products = torch.nn.functional.pad(products, (1, 1, 1, 1), mode="replicate")
    xx, yy, xy = avg_pool2d(products, 11, stride=1, padding=5, count_include_pad=False).split(1, dim=1)
    return torch.hypot(xx - yy, 2 * xy) / (xx + yy)


def test_colour_does_not_tell_the_animal_but_texture_does(shapes):
    masks = [masks_from_trimaps(split.trimaps, "binary", "pet").bool() for split in shapes]
    everywhere = dice(torch.ones_like(masks[1]), masks[1])
    by_colour = dice_of_linear_model([split.images.float() / 255 for split in shapes], masks)
    by_texture = dice_of_linear_model([coherence(split.images) for split in shapes], masks)
    assert by_colour < everywhere + 0.02 < 0.6  # no better than to call each pixel an animal's
    assert by_texture > 0.8
