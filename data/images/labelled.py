"""Image sets with one label per image (CIFAR-10, MNIST, ...) as uint8 tensors, from wherever they are on disk."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.cache import cached_arrays, content_key
from data.errors import DataError
from data.hub import load_from_hub
from data.images.decoding import MODES, decode_image, fitted
from data.images.held_out import chosen_rows, held_out_by_hash
from data.images.layouts import LAYOUTS, read_image_folder
from data.images.on_host import copied_ahead, kept_on_host, without_room
from data.images.parquet import rows_of_tables
from data.images.rows import HELD_OUT, MAX_CLASSES, ImageRows, RowSplits
from data.memory import require_memory

_CACHE_FORMAT = 1  # to be raised when decode_image gives other pixels than before


@dataclass(frozen=True)
class LabelledImages:
    """Image i has the class `labels[i]`."""

    images: Tensor  # (N, C, H, W) uint8, contiguous
    labels: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: Tensor) -> "LabelledImages":
        """Those images alone: `chosen` (N,) bool, or numbers of images."""
        return LabelledImages(chosen_rows(self.images, chosen), self.labels[chosen])

    def to(self, device: torch.device) -> "LabelledImages":
        """The same on `device`."""
        return LabelledImages(self.images.to(device), self.labels.to(device))

    def near(self, device: torch.device, images_stay: bool) -> "LabelledImages":
        """The same for use on `device`; where the images stay on the host, the labels alone lie there."""
        images = kept_on_host(self.images, device) if images_stay else self.images.to(device)
        return LabelledImages(images, self.labels.to(device))

    def ahead(self, updates: Sequence[Tensor]) -> Sequence[Tensor]:
        """The `updates`, image numbers (B,) each; images that stay on the host are copied ahead of their use."""
        return copied_ahead(updates, lambda ids: ids, self.images)


@dataclass(frozen=True)
class ImageSplits:
    """`class_names[label]` is the name of a class; every label of all splits has one."""

    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
    valid: LabelledImages | None = None  # held out of the training images; None: nothing is
    notes: tuple[str, ...] = ()  # a line where images stay on the host

    @classmethod
    def of(
        cls,
        train_images: Tensor,
        train_labels: Tensor,
        test_images: Tensor,
        test_labels: Tensor,
        class_names: tuple[str, ...],
    ) -> "ImageSplits":
        """The splits of a data set that is drawn by code."""
        train, test = LabelledImages(train_images, train_labels), LabelledImages(test_images, test_labels)
        return cls(train, test, class_names)

    def with_validation(self, fraction: float) -> "ImageSplits":
        """The same with a share of the training images held out for validation, by the hash of their pixels.

        Images of a class that would have none left to train on are not held out; where that leaves nothing to
        validate on, nothing is. Raises DataError where none is left to train on.
        """
        if fraction == 0:
            return self
        held_out = held_out_by_hash(self.train.images, fraction)
        left = self.train.labels[~held_out].bincount(minlength=len(self.class_names))
        held_out &= left[self.train.labels] > 0
        if not held_out.any():
            return self
        return replace(self, train=self.train.select(~held_out), valid=self.train.select(held_out))

    def to(self, device: torch.device) -> "ImageSplits":
        """The same with all images and labels on `device`."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), valid=valid)

    def near(self, device: torch.device, times: int = 1, whole_evaluation: bool = False) -> "ImageSplits":
        """The same for use on `device`: images lie on it where it has room, else they stay on the host.

        times: what a training image takes there, in multiples of its bytes.
        whole_evaluation: the test and validation images are wanted as a whole, so they lie on the device anyway.
        """
        evaluation_bytes = sum(split.images.numel() for split in (self.test, self.valid) if split is not None)
        train_stays, others_stay, note = without_room(
            device, times * self.train.images.numel(), evaluation_bytes, whole_evaluation
        )
        train, test = self.train.near(device, train_stays), self.test.near(device, others_stay)
        valid = None if self.valid is None else self.valid.near(device, others_stay)
        return replace(self, train=train, test=test, valid=valid, notes=(note,) if note else ())


def load_image_splits(
    dataset: str, data_dir: str | Path | None, *, image_size: int = 32, n_channels: int = 3
) -> ImageSplits:
    """The training and test images of `data_dir`, or else of a hub data set such as "uoft-cs/cifar10".

    data_dir: a folder in one of these layouts. With it, `dataset` is not read and no network is used.
        - the hub's parquet: train-*.parquet and test-*.parquet (or validation-*, valid-*), or train/*.parquet and
          test/*.parquet, of a column `img` or `image` of encoded images and a column `label`, `fine_label` or,
          if it has but one column of integers, that one;
        - cifar-10-batches-py, cifar-100-python or cifar-10-batches-bin, as their authors pack them, or the archive;
        - MNIST's four IDX files, plain or gzipped;
        - one of these, one folder or two below, such as torchvision's MNIST/raw and the hub's plain_text/train;
        - train/CLASS/*.png (or .jpg, .webp, ...) and test/CLASS/*.png (or validation, valid, val, in any case),
          at any depth below the class. Without a
          held-out folder, or with class folders alone, about a tenth of the images is held out by the hash of
          their files, so equal files fall on the same side.
    image_size, n_channels: what the images become: squares of `image_size` pixels in RGB (3) or grey (1).

    Class names are those that the data has, else "0", "1", ... up to the largest training label. Decoded images
    are cached under the hash of their files.

    Raises DataError, with file and row (counted from 0) where there is one, for a folder that is missing, has
    no such layout or lacks files of it; for images that cannot be decoded; for labels without a class; for a
    pickle that holds anything but what the CIFAR files do (nothing in it is executed); for an empty split; and,
    without `data_dir`, where the hub cannot be reached and the data set is not in its local cache.
    """
    if data_dir is None:
        train, test, names = _download(dataset)
        source = dataset
    else:
        train, test, names = read_image_folder(Path(data_dir))
        source = str(data_dir)
    for split, rows in (("training", train), ("test", test)):
        if not rows.places:
            raise DataError(f"the {split} split of {source} is empty: give more images")
    if names is None:
        names = tuple(str(label) for label in range(int(train.labels.max().clip(0, MAX_CLASSES - 1)) + 1))
    for rows in (train, test):
        _check_labels(rows, len(names))
    train, test = (
        LabelledImages(torch.from_numpy(_to_pixels(rows, image_size, n_channels)), torch.from_numpy(rows.labels))
        for rows in (train, test)
    )
    return ImageSplits(train, test, names)


def load_test_images(
    data_dir: str | Path, class_names: Sequence[str], *, image_size: int, n_channels: int, whole: bool = False
) -> LabelledImages:
    """The images of a folder to test a net on that tells apart `class_names`; labels are places in these.

    data_dir: a folder in one of the layouts of `load_image_splits`, which may have a test split alone. Its classes
        are found by their names.
    whole: take the training images too, before the others.

    Raises DataError as `load_image_splits` does, and for images of a class that is none of `class_names`.
    """
    train, test, names = read_image_folder(Path(data_dir))
    chosen = [rows for rows in ((train, test) if whole else (test,)) if rows.places]
    if not chosen:
        raise DataError(f"the test split of {data_dir} is empty: give images")
    if names is None:
        most = max(int(rows.labels.max()) for rows in chosen)
        names = tuple(str(label) for label in range(min(most, MAX_CLASSES - 1) + 1))
    parts = []
    for rows in chosen:
        _check_labels(rows, len(names))
        labels = _labels_by_name(rows.labels, names, class_names, data_dir)
        pixels = _to_pixels(rows, image_size, n_channels)
        parts.append(LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels)))
    return LabelledImages(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))


def _labels_by_name(
    labels: np.ndarray, names: Sequence[str], class_names: Sequence[str], data_dir: str | Path
) -> np.ndarray:
    """Labels (N,) of classes `names` as places in `class_names`."""
    unknown = [names[label] for label in np.unique(labels) if names[label] not in class_names]
    if unknown:
        raise DataError(
            f"{data_dir} has images of {_listed(unknown)}, but the run tells apart {_listed(class_names)}: name "
            "the classes alike, or leave these images out"
        )
    place = np.array([class_names.index(name) if name in class_names else -1 for name in names], dtype=np.int64)
    return place[labels]


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_trainable(splits: ImageSplits, n_parts: int) -> None:
    """Raise DataError where these splits cannot be trained and tested on, in updates of `n_parts` micro-batches.

    That takes two classes, images of each of them in both splits, and as many images as micro-batches.
    """
    n_train, n_test = len(splits.train), len(splits.test)
    if len(splits.class_names) < 2:
        raise DataError(f"all images are of one class, {splits.class_names[0]}: give images of two classes or more")
    for name, split in (("training", splits.train), ("test", splits.test)):
        counts = split.labels.bincount(minlength=len(splits.class_names))
        if not counts.all():
            missing = [splits.class_names[k] for k in (counts == 0).nonzero()[:, 0].tolist()]
            raise DataError(
                f"no {name} image is of class {', '.join(missing[:5])}{', ..' * (len(missing) > 5)}: add some, or "
                "remove the class from both splits"
            )
    if min(n_train, n_test) < n_parts:
        raise DataError(
            f"{n_train} training and {n_test} test images are too few for {n_parts} micro-batches an update: lower "
            "--gradient_accumulation_steps or launch fewer processes"
        )


def _check_labels(rows: ImageRows, n_classes: int) -> None:
    wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= n_classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{rows.places[row]}: label {rows.labels[row]} is not in 0..{n_classes - 1}, "
            f"the {n_classes} classes: mend the label, or leave the image out"
        )


def _download(dataset: str) -> RowSplits:
    splits = load_from_hub(
        dataset,
        ways_out=f"or give --data_dir with a copy ({LAYOUTS}), or run the recipe demo, which needs no data",
    )
    held_out = next((name for name in HELD_OUT if name in splits), None)
    if "train" not in splits or held_out is None:
        raise DataError(f"{dataset} needs the splits train and test (or validation); it has {', '.join(splits)}")
    # The stored table, of encoded images: row access would decode them.
    (train, names), (test, _) = (
        rows_of_tables([(f"{dataset} {name}", splits[name].with_format("arrow")[:])])
        for name in ("train", held_out)
    )
    return train, test, names


# Pixels


def _to_pixels(rows: ImageRows, image_size: int, n_channels: int) -> np.ndarray:
    """The images of a split: (N, n_channels, image_size, image_size) uint8, contiguous."""
    if isinstance(rows.images, np.ndarray):
        return _convert_pixels(rows.images, image_size, n_channels)
    from PIL import __version__ as pillow_version

    def decode() -> dict[str, np.ndarray]:
        def one(row: int) -> np.ndarray:
            return decode_image(rows.images[row], rows.places[row], image_size, n_channels)

        return {"images": _in_threads(one, len(rows.images), image_size, n_channels)}

    settings = {
        "image_size": image_size,
        "n_channels": n_channels,
        "pillow": pillow_version,
        "format": _CACHE_FORMAT,
    }
    return cached_arrays(content_key(settings, rows.images), ("images",), decode)["images"]


def _convert_pixels(pixels: np.ndarray, image_size: int, n_channels: int) -> np.ndarray:
    if pixels.shape[1:] == (n_channels, image_size, image_size):
        return np.array(pixels, order="C")  # torch wants memory that may be written to
    from PIL import Image

    def one(row: int) -> np.ndarray:
        image = pixels[row, 0] if pixels.shape[1] == 1 else pixels[row].transpose(1, 2, 0)
        return fitted(Image.fromarray(np.ascontiguousarray(image)), image_size, MODES[n_channels])

    return _in_threads(one, len(pixels), image_size, n_channels)


def _in_threads(one: Callable[[int], np.ndarray], n: int, image_size: int, n_channels: int) -> np.ndarray:
    """`one(0)` to `one(n - 1)`, stacked. Of several errors, the first row's is raised."""
    mend = "lower --image_size"
    require_memory(n * n_channels * image_size**2, f"{n:,} images of {image_size}x{image_size} pixels", mend)
    images = np.empty((n, n_channels, image_size, image_size), dtype=np.uint8)

    def fill(first: int) -> None:
        for row in range(first, min(first + 256, n)):
            images[row] = one(row)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, n, 256)):
            pass
    return images
