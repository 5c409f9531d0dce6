import pytest
import torch

from data.masked_images import BACKGROUND, BORDER, IGNORE, PET, masks_from_trimaps

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
