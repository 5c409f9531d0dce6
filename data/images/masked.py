"""Pictures with a mask each, and the masks that are made of trimaps."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from data.errors import DataError
from data.images.held_out import chosen_rows, held_out_by_hash
from data.images.on_host import kept_on_host, without_room
from data.images.pixels import channel_statistics

BACKGROUND, PET, BORDER = 0, 1, 2  # values of a trimap, and the classes of a mask
IGNORE = 255  # value of a mask where there is nothing to learn and nothing to score


@dataclass(frozen=True)
class MaskedImages:
    """Picture i is called `names[i]` and has the trimap `trimaps[i]`."""

    images: Tensor  # (N, 3, S, S) uint8
    trimaps: Tensor  # (N, S, S) uint8 of BACKGROUND, PET and BORDER
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, chosen: Tensor) -> "MaskedImages":
        """Those pictures alone: `chosen` (N,) bool."""
        names = _chosen_names(self.names, chosen)
        return MaskedImages(chosen_rows(self.images, chosen), chosen_rows(self.trimaps, chosen), names)


@dataclass(frozen=True)
class MaskSplit:
    """Picture i is called `names[i]` and has the mask `masks[i]`."""

    images: Tensor  # (N, 3, S, S) uint8
    masks: Tensor  # (N, S, S) uint8 of class numbers, or IGNORE
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, chosen: Tensor) -> "MaskSplit":
        """Those pictures alone: `chosen` (N,) bool."""
        names = _chosen_names(self.names, chosen)
        return MaskSplit(chosen_rows(self.images, chosen), chosen_rows(self.masks, chosen), names)

    def to(self, device: torch.device) -> "MaskSplit":
        """The same on `device`."""
        return MaskSplit(self.images.to(device), self.masks.to(device), self.names)

    def near(self, device: torch.device, stays: bool) -> "MaskSplit":
        """The same for use on `device`, which pictures and masks lie on, or else they stay on the host."""
        if not stays:
            return self.to(device)
        return MaskSplit(kept_on_host(self.images, device), kept_on_host(self.masks, device), self.names)

    def classes(self) -> list[int]:
        """The numbers of the classes that have pixels, rising."""
        return _classes(self.masks)


@dataclass(frozen=True)
class MaskSplits:
    """What a net is trained and tested on. Class k is called `class_names[k]`."""

    train: MaskSplit
    test: MaskSplit
    class_names: tuple[str, ...]
    mask_values: tuple[int | tuple[int, int, int], ...] = ()  # what the mask files hold for each class, if files do
    notes: tuple[str, ...] = ()  # how the files were understood, a line each
    valid: MaskSplit | None = None  # held out of the training pictures; None: nothing is

    def with_validation(self, fraction: float) -> "MaskSplits":
        """The same with a share of the training pictures held out for validation, by the hash of their pixels.

        More are held out where they would show one class alone, and two can be had without taking them from the
        training. Raises DataError where no picture is left to train on.
        """
        if fraction == 0:
            return self
        train = self.train

        def both_have_two_classes(held_out: Tensor) -> bool:
            return all(len(_classes(train.masks[side])) >= 2 for side in (held_out, ~held_out))

        held_out = held_out_by_hash(train.images, fraction, both_have_two_classes)
        return replace(self, train=train.select(~held_out), valid=train.select(held_out))

    def to(self, device: torch.device) -> "MaskSplits":
        """The same with all pictures and masks on `device`."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), valid=valid)

    def near(self, device: torch.device) -> "MaskSplits":
        """The same for use on `device`: pictures and masks lie on it where it has room, else they stay on the host.

        A line among the notes says so.
        """
        n_bytes = [
            0 if s is None else s.images.numel() + s.masks.numel() for s in (self.train, self.test, self.valid)
        ]
        train_stays, others_stay, note = without_room(device, n_bytes[0], sum(n_bytes[1:]), whole_evaluation=False)
        train, test = self.train.near(device, train_stays), self.test.near(device, others_stay)
        valid = None if self.valid is None else self.valid.near(device, others_stay)
        return replace(self, train=train, test=test, valid=valid, notes=self.notes + ((note,) if note else ()))


def _chosen_names(names: list[str], chosen: Tensor) -> list[str]:
    return [name for name, is_chosen in zip(names, chosen.tolist(), strict=True) if is_chosen]


def _classes(masks: Tensor) -> list[int]:
    return masks.flatten().bincount(minlength=IGNORE + 1)[:IGNORE].nonzero()[:, 0].tolist()


def require_trainable(splits: MaskSplits, n_parts: int) -> None:
    """Raise DataError where these splits cannot be trained and tested on, in updates of `n_parts` micro-batches.

    That takes pixels of two classes in both splits, and as many pictures as micro-batches.
    """
    n_train, n_test = len(splits.train), len(splits.test)
    if min(n_train, n_test) < n_parts:
        raise DataError(
            f"{n_train} training and {n_test} test pictures are too few for {n_parts} micro-batches an update: "
            "lower --gradient_accumulation_steps or launch fewer processes"
        )
    for name, split in (("training", splits.train), ("test", splits.test)):
        present = split.classes()
        if len(present) < 2:
            only = splits.class_names[present[0]] if present else "to be ignored"
            raise DataError(f"all pixels of the {len(split)} {name} masks are {only}: give others as well")


def splits_of_trimaps(
    train: MaskedImages,
    test: MaskedImages,
    classes: Literal["binary", "trimap"],
    border: Literal["pet", "background", "ignore"],
) -> MaskSplits:
    """Pet's pictures, or others with trimaps, with the masks that `masks_from_trimaps` makes."""
    train_split, test_split = (
        MaskSplit(s.images, masks_from_trimaps(s.trimaps, classes, border), s.names) for s in (train, test)
    )
    return MaskSplits(train_split, test_split, ("background", "pet", "border")[: 2 if classes == "binary" else 3])


def masks_from_trimaps(
    trimaps: Tensor, classes: Literal["binary", "trimap"], border: Literal["pet", "background", "ignore"]
) -> Tensor:
    """`trimaps` (..., S, S) uint8 -> masks of the same shape and type.

    classes: "trimap" keeps the three classes, BACKGROUND, PET and BORDER; `border` is not read. "binary" has
        BACKGROUND and PET alone.
    border: what the border counts as in a binary mask; "ignore" marks it IGNORE.
    """
    if classes == "trimap":
        return trimaps
    counts_as = {"pet": PET, "background": BACKGROUND, "ignore": IGNORE}[border]
    return trimaps.masked_fill(trimaps == BORDER, counts_as)


def picture_statistics(split: MaskSplit, n_classes: int) -> dict[str, Tensor]:
    """`channel_statistics` of the pictures, and "class_shares" (K,) float64.

    That is the share of each of the K = `n_classes` classes in all pixels of the masks; what is missing to 1 is
    ignored.
    """
    counts = split.masks.flatten().bincount(minlength=IGNORE + 1)[:n_classes]
    return {**channel_statistics(split.images), "class_shares": counts.double() / split.masks.numel()}
