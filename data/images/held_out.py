"""A validation split out of training images, by the hash of their pixels."""

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor

from data.cache import cached_arrays, content_key
from data.errors import DataError

LARGE = 1 << 30  # bytes that a process should not hold for itself


def held_out_by_hash(
    images: Tensor, fraction: float, is_fair: Callable[[Tensor], bool] = lambda held_out: True
) -> Tensor:
    """Which of `images` (N, ...) uint8 are held out: (N,) bool, about `fraction` of them, at least one.

    The hash of its pixels decides about an image, so the split depends neither on the order of the images nor on a
    seed, and equal images fall on the same side. A fraction of 0 holds out none.

    Few images may make a split that shows nothing, such as pictures without an object. Where `is_fair`, given the
    split, says so, the next images by their hash join, until it is content; where it never is, none does.

    Raises DataError where nothing is left to train on.
    """
    if fraction <= 0:
        return torch.zeros(len(images), dtype=torch.bool)
    hashes = [blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images.contiguous()]
    n_held_out = max(1, round(fraction * len(images)))
    in_order = sorted(hashes)
    first = torch.tensor([digest <= in_order[n_held_out - 1] for digest in hashes])
    if first.all():
        raise DataError(
            f"--valid_fraction {fraction} of {len(images)} images leaves none to train on: give more images, a "
            "smaller fraction, or 0 for no validation"
        )
    for largest in in_order[n_held_out - 1 : -1]:
        held_out = torch.tensor([digest <= largest for digest in hashes])
        if is_fair(held_out):
            return held_out
    return first


def chosen_rows(rows: Tensor, chosen: Tensor) -> Tensor:
    """`rows[chosen]` of a tensor (N, ...) uint8 on the host; `chosen` (N,) bool, or numbers of rows.

    A large one is mapped from the cache, as `rows` is that comes from there: processes share its memory.
    """
    numbers = torch.arange(len(rows))[chosen]
    if len(numbers) * rows[:1].numel() < LARGE:
        return rows[numbers]
    settings = {"rows": list(rows.shape)}
    key = content_key(settings, [rows.contiguous().numpy(), numbers.numpy()])
    return torch.from_numpy(cached_arrays(key, ("rows",), lambda: {"rows": rows[numbers].numpy()})["rows"])
