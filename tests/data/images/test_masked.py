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
