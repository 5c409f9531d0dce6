import gzip
import struct

import numpy as np
import pytest
from image_sets import SHARED, assert_split, encoded, fails, random_pixels

from data.images.decoding import decode_image
from data.images.labelled import load_image_splits


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, train, train_labels, test, test_labels, separator="-", gzipped=True):
    folder.mkdir(exist_ok=True)
    for split, images, labels in (("train", train, train_labels), ("t10k", test, test_labels)):
        for name, array in (("images", images), ("labels", np.array(labels, np.uint8))):
            path = folder / f"{split}-{name}{separator}idx{array.ndim}-ubyte{'.gz' if gzipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if gzipped else idx(array))


@pytest.mark.parametrize(("separator", "gzipped"), [("-", True), ("-", False), (".", False), (".", True)])
def test_mnist(tmp_path, separator, gzipped):
    pixels = random_pixels(5, 28, 28)
    write_mnist(tmp_path, pixels[:3], [2, 0, 1], pixels[3:], [1, 1], separator, gzipped)
    splits = load_image_splits("x/y", tmp_path, image_size=28, n_channels=1)
    assert_split(splits.train, pixels[:3, None], [2, 0, 1])
    assert_split(splits.test, pixels[3:, None], [1, 1])
    assert splits.class_names == ("0", "1", "2")


def test_raw_pixels_are_converted_as_encoded_ones_are(tmp_path):
    pixels = random_pixels(5, 28, 28)
    write_mnist(tmp_path, pixels[:3], [2, 0, 1], pixels[3:], [1, 1])
    images = load_image_splits("x/y", tmp_path, image_size=32, n_channels=3).train.images.numpy()
    for image, original in zip(images, pixels, strict=False):
        np.testing.assert_array_equal(image, decode_image(encoded(original), "", 32, 3))


def test_mnist_files_that_cannot_be_used(tmp_path):
    pixels = random_pixels(5, 28, 28)

    def rewrite(name=None, content=b""):
        write_mnist(tmp_path, pixels[:3], [2, 0, 1], pixels[3:], [1, 1], gzipped=False)
        if name:
            (tmp_path / name).write_bytes(content)

    images, labels, test_labels = (
        f"{name}-ubyte" for name in ("train-images-idx3", "train-labels-idx1", "t10k-labels-idx1")
    )
    for content in (idx(pixels[:3])[:-1], idx(pixels[:3]) + b"0"):
        rewrite(images, content)
        fails(tmp_path, images, "3×28×28")
    for content in (idx(pixels[:3])[:10], b"", idx(pixels[:3]).replace(b"\x08", b"\x0d", 1), idx(pixels[:3, 0])):
        rewrite(images, content)
        fails(tmp_path, images, "IDX file")
    rewrite(images, idx(np.zeros((3, 0, 28), np.uint8)))
    fails(tmp_path, images, "3×0×28")
    rewrite(images, gzip.compress(idx(pixels[:3]))[:-9])
    fails(tmp_path, images, "gzip")
    rewrite(labels, idx(np.zeros(4, np.uint8)))
    fails(tmp_path, images, "3 images", labels, "4 labels")
    rewrite(test_labels, idx(np.array([1, 3], np.uint8)))
    fails(tmp_path, f"{test_labels} row 1", "label 3 is not in 0..2")
    (tmp_path / test_labels).unlink()
    fails(tmp_path, tmp_path, "lacks t10k-labels")
    write_mnist(tmp_path, pixels[:3], [2, 0, 1], pixels[:0], [], gzipped=False)
    fails(tmp_path, "test split", "empty")


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="MNIST is not at hand")
def test_real_mnist():
    splits = load_image_splits("x/y", str(SHARED / "mnist"), image_size=28, n_channels=1)
    assert splits.train.images.shape == (60_000, 1, 28, 28) and splits.test.images.shape == (10_000, 1, 28, 28)
    assert splits.class_names == tuple("0123456789")
    assert splits.train.images.double().mean().item() == pytest.approx(33.318, abs=1e-3)
    assert splits.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
