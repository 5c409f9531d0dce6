"""Under an artificial limit of the device's room: the same batches as where all images lie on it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data.images import on_host
from data.images.augmentation import Augmentation, Augmenter
from data.images.epoch_order import plan_epoch
from data.images.joint_augmentation import JointAugmentation, JointAugmenter
from data.images.labelled import ImageSplits, LabelledImages
from data.images.masked import MaskSplit, MaskSplits
from data.images.on_host import RowsOnHost

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([125.3, 122.9, 113.9]), torch.tensor([63.0, 62.1, 66.7])
N = 40


@pytest.fixture
def images(tmp_path) -> Tensor:
    """Of 8x8 pixels, mapped from a file, as they come from the cache."""
    mapped = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(N, 3, 8, 8))
    mapped[:] = np.random.default_rng(0).integers(256, size=mapped.shape)
    return torch.from_numpy(mapped)


def updates_of(epoch: int) -> tuple[Tensor, ...]:
    return plan_epoch(N, 9, seed=3, epoch=epoch, device=CPU)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_padding": 2, "flip": "alternating", "contrast": 0.3, "brightness": 0.2},
        {"crop_padding": 3, "padding_mode": "zero", "flip": "random", "cutout": 4},
    ],
)
def test_augmented_images_are_the_same_from_the_host(images, settings):
    resident, from_host = (
        Augmenter(store, Augmentation(**settings), MEAN, STD, seed=0) for store in (images, RowsOnHost(images, CPU))
    )
    assert torch.equal(from_host.preview(3, n_epochs=2), resident.preview(3, n_epochs=2))
    for epoch in range(2):
        resident.draw(epoch)
        from_host.draw(epoch)
        expected = updates_of(epoch)
        assert resident.ahead(expected, range(1, 2), 2) is expected
        updates = from_host.ahead(expected, range(1, 2), 2)
        assert len(updates) == len(expected)
        for ids, same in zip(updates, expected, strict=True):
            assert torch.equal(ids, same)
            others, own = ids.tensor_split(2)
            assert torch.equal(from_host.batch(own), resident.batch(own))
            with pytest.raises(IndexError):  # another process's
                from_host.batch(others)


def test_an_update_that_is_asked_for_again_is_at_hand_again(images):
    rows = LabelledImages(images, torch.zeros(N, dtype=torch.int64)).near(CPU, images_stay=True)
    updates = rows.ahead(updates_of(0))
    for place in (0, -1, 0):
        ids = updates[place]
        assert torch.equal(rows.images[ids], images[ids])
    assert torch.equal(rows.images[:5], images[:5]) and torch.equal(rows.to(CPU).images, images)


@pytest.mark.parametrize("mixes", [{}, {"background_mix": 0.5}, {"background_mix": 0.6, "cutmix": 0.6}])
def test_augmented_pictures_and_masks_are_the_same_from_the_host_with_those_mixed_in(images, mixes):
    masks = images[:, 0] % 3
    augmentation = JointAugmentation(flip=True, scale=0.3, rotation=20, contrast=0.3, saturation=0.2, **mixes)
    stores = (images, masks), (RowsOnHost(images, CPU), RowsOnHost(masks, CPU))
    resident, from_host = (JointAugmenter(*store, augmentation, MEAN, STD, seed=0) for store in stores)
    for epoch in range(2):
        resident.draw(epoch)
        from_host.draw(epoch)
        for ids in from_host.ahead(updates_of(epoch), range(0, 2), 2):
            for own in ids.tensor_split(2):
                assert all(map(torch.equal, from_host.batch(own, 6), resident.batch(own, 6)))


@pytest.mark.parametrize(
    ("room", "whole_evaluation", "train_stays", "others_stay"),
    [
        (40 * 192 * 2 + 20 * 192, False, False, False),
        (40 * 192 * 2, False, False, True),
        (40 * 192, False, True, False),
        (10 * 192, False, True, True),
        (40 * 192 * 2, True, True, False),
        (0, True, True, False),
    ],
)
def test_what_has_no_room_stays_on_the_host_and_a_line_says_so(
    images, monkeypatch, room, whole_evaluation, train_stays, others_stay
):
    monkeypatch.setattr(on_host, "room_on", lambda device: room)
    train, ten = (LabelledImages(images[:n], torch.zeros(n, dtype=torch.int64)) for n in (N, 10))
    near = ImageSplits(train, ten, ("one",), valid=ten).near(CPU, 2, whole_evaluation)
    stays = [isinstance(split.images, RowsOnHost) for split in (near.train, near.test, near.valid)]
    assert stays == [train_stays, others_stay, others_stay]
    (note,) = near.notes or ("",)
    assert ("training images" in note, "other images" in note) == (train_stays, others_stay)
    assert ("copied ahead of their use" in note) == train_stays


def test_pictures_stay_on_the_host_with_their_masks(images, monkeypatch):
    split = MaskSplit(images, images[:, 0] % 3, [str(i) for i in range(N)])
    splits = MaskSplits(split, split, ("a", "b", "c"), notes=("read as masks",))
    assert splits.near(CPU).notes == splits.notes
    monkeypatch.setattr(on_host, "room_on", lambda device: 1000)
    near = splits.near(CPU)
    assert near.notes[:-1] == splits.notes and "training images (0.0 MiB" in near.notes[-1]
    ids = torch.tensor([7, 2])
    assert torch.equal(near.test.masks[ids], split.masks[ids])
    back = near.to(CPU)
    assert torch.equal(back.train.images, images) and torch.equal(back.test.masks, split.masks)
