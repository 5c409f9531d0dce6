import pytest
import torch

from data.errors import DataError
from data.images.masked import (
    BACKGROUND,
    BORDER,
    IGNORE,
    PET,
    MaskSplit,
    MaskSplits,
    masks_from_trimaps,
    require_trainable,
)

TRIMAPS = torch.tensor(
    [[[BACKGROUND, PET], [BORDER, PET]], [[BORDER, BORDER], [BACKGROUND, PET]]], dtype=torch.uint8
)


@pytest.mark.parametrize(("border", "value"), [("pet", 1), ("background", 0), ("ignore", 255)])
def test_in_binary_masks_the_border_counts_as_asked(border, value):
    masks = masks_from_trimaps(TRIMAPS, "binary", border)
    assert masks.dtype == torch.uint8
    assert masks.tolist() == [[[0, 1], [value, 1]], [[value, value], [0, 1]]]
    assert IGNORE == 255


@pytest.mark.parametrize("border", ["pet", "background", "ignore"])
def test_trimap_masks_keep_the_border_as_a_class(border):
    assert masks_from_trimaps(TRIMAPS, "trimap", border).tolist() == [[[0, 1], [2, 1]], [[2, 2], [0, 1]]]


def test_splits_of_one_class_or_too_few_pictures_are_refused():
    def split(*values):
        masks = torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(-1, 4, 4)
        return MaskSplit(torch.zeros(len(values), 3, 4, 4), masks, [str(i) for i in range(len(values))])

    names = ("background", "cat", "dog")
    require_trainable(MaskSplits(split(0, 1, 2), split(0, 2), names), n_parts=2)
    for train, test, n_parts, message in (
        (split(0, 1), split(0, 0), 1, "all pixels of the 2 test masks are background"),
        (split(1, 1, IGNORE), split(0, 1), 1, "all pixels of the 3 training masks are cat"),
        (split(0, 1), split(IGNORE), 1, "all pixels of the 1 test masks are to be ignored"),
        (split(0, 1), split(0, 1), 3, "2 training and 2 test pictures are too few for 3 micro-batches"),
    ):
        with pytest.raises(DataError, match=f"^{message}"):
            require_trainable(MaskSplits(train, test, names), n_parts)


# Validation


def pictures(n: int, classes_of) -> MaskSplit:
    """n different pictures; picture i has all of `classes_of(i)`."""
    generator = torch.manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)
    masks = torch.stack([torch.tensor(classes_of(i), dtype=torch.uint8).repeat(16)[:16] for i in range(n)])
    return MaskSplit(images, masks.view(n, 4, 4), [f"picture_{i}" for i in range(n)])


def test_validation_pictures_are_held_out_with_their_masks_and_names():
    whole = pictures(50, lambda i: (0, 1))
    splits = MaskSplits(whole, pictures(3, lambda i: (0, 1)), ("background", "cat"))
    assert splits.with_validation(0) is splits and splits.valid is None
    held_out = splits.with_validation(0.1)
    assert len(held_out.valid) == 5 and len(held_out.train) == 45 and held_out.test is splits.test
    assert sorted(held_out.train.names + held_out.valid.names) == sorted(whole.names)
    for split in (held_out.train, held_out.valid):
        for image, mask, name in zip(split.images, split.masks, split.names, strict=True):
            i = int(name.removeprefix("picture_"))
            assert torch.equal(image, whole.images[i]) and torch.equal(mask, whole.masks[i])
    moved = held_out.to(torch.device("cpu"))
    assert torch.equal(moved.valid.images, held_out.valid.images) and moved.valid.names == held_out.valid.names


def test_the_order_of_the_pictures_does_not_matter():
    whole = pictures(40, lambda i: (0, 1))
    names = ("background", "cat")
    backwards = MaskSplit(whole.images.flip(0), whole.masks.flip(0), whole.names[::-1])
    held_out = [MaskSplits(split, whole, names).with_validation(0.2).valid.names for split in (whole, backwards)]
    assert sorted(held_out[0]) == sorted(held_out[1]) and len(held_out[0]) == 8


@pytest.mark.parametrize("with_object", range(0, 12, 2))
def test_a_validation_split_of_few_pictures_shows_more_than_the_background(with_object):
    """Else a net that finds nothing were the best."""
    whole = pictures(12, lambda i: (0, 1) if i in (with_object, with_object + 1) else (0,))
    splits = MaskSplits(whole, whole, ("background", "cat")).with_validation(0.1)
    assert splits.valid.classes() == splits.train.classes() == [0, 1]
    assert len(splits.valid) < 12


def test_where_no_split_can_show_two_classes_on_both_sides_the_plain_one_is_taken():
    whole = pictures(12, lambda i: (0, 1) if i == 5 else (0, IGNORE))
    splits = MaskSplits(whole, whole, ("background", "cat")).with_validation(0.1)
    assert len(splits.valid) == 1 and len(splits.train) == 11


def test_a_share_that_leaves_nothing_to_train_on_is_refused():
    whole = pictures(1, lambda i: (0, 1))
    with pytest.raises(DataError, match="--valid_fraction"):
        MaskSplits(whole, whole, ("background", "cat")).with_validation(0.5)
