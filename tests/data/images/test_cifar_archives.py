import io
import pickle
import pickletools
import struct

import numpy as np
import pytest
from image_sets import CIFAR_NAMES, NAMES, assert_split, encoded, fails, hwc, random_pixels

from data.images.decoding import decode_image
from data.images.labelled import load_image_splits


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 writes its strings, as in the official files."""

    def save(self, value, save_persistent_id=True):
        if not isinstance(value, bytes):
            super().save(value, save_persistent_id)
        elif len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    content = file.getvalue()
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python3_pickle(value):
    return pickle.dumps(value, protocol=2)


def write_cifar10(folder, pixels, labels, dump=python2_pickle):
    """Six files of two images each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        part = slice(2 * i, 2 * i + 2)
        batch = {b"batch_label": name.encode(), b"labels": labels[part], b"data": pixels[part].reshape(2, 3072)}
        (folder / name).write_bytes(dump(batch))
    meta = {b"num_vis": 3072, b"label_names": [name.encode() for name in CIFAR_NAMES]}
    (folder / "batches.meta").write_bytes(dump(meta))


CIFAR_LABELS = [3, 0, 9, 1, 1, 2, 7, 5, 8, 4, 6, 9]


def test_the_pickles_of_these_tests_are_like_the_official_ones():
    content = python2_pickle({b"data": random_pixels(2, 3072)})
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert {"SHORT_BINSTRING", "BINSTRING"} <= opcodes and "BINBYTES" not in opcodes
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("folder", [".", "cifar-10-batches-py"])
def test_cifar10_pickles(tmp_path, folder, dump):
    pixels = random_pixels(12, 3, 32, 32)
    write_cifar10(tmp_path / folder, pixels, CIFAR_LABELS, dump)
    splits = load_image_splits("x/y", tmp_path)
    assert_split(splits.train, pixels[:10], CIFAR_LABELS[:10])
    assert_split(splits.test, pixels[10:], CIFAR_LABELS[10:])
    assert splits.class_names == CIFAR_NAMES


def test_an_array_in_columns_order_is_read_as_such(tmp_path):
    pixels = random_pixels(12, 3, 32, 32)
    write_cifar10(tmp_path, pixels, CIFAR_LABELS)
    batch = {b"labels": [1, 2], b"data": np.asfortranarray(pixels[10:].reshape(2, 3072))}
    (tmp_path / "test_batch").write_bytes(python2_pickle(batch))
    assert_split(load_image_splits("x/y", tmp_path).test, pixels[10:], [1, 2])


def test_cifar100_pickles(tmp_path):
    pixels = random_pixels(5, 3, 32, 32)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, part, labels in (("train", pixels[:3], [2, 0, 1]), ("test", pixels[3:], [1, 1])):
        batch = {b"data": part.reshape(-1, 3072), b"fine_labels": labels, b"coarse_labels": [0] * len(labels)}
        (folder / name).write_bytes(python2_pickle(batch))
    meta = {b"coarse_label_names": [b"x"], b"fine_label_names": [name.encode() for name in NAMES]}
    (folder / "meta").write_bytes(python2_pickle(meta))
    splits = load_image_splits("x/y", tmp_path)
    assert_split(splits.train, pixels[:3], [2, 0, 1])
    assert_split(splits.test, pixels[3:], [1, 1])
    assert splits.class_names == NAMES


class Malicious:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path, function):
        self.path, self.function = path, function

    def __reduce__(self):
        return self.function, (str(self.path), "w")


@pytest.mark.parametrize("key", [b"data", b"labels", b"extra"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, key):
    write_cifar10(tmp_path, random_pixels(12, 3, 32, 32), CIFAR_LABELS)
    created = tmp_path / "created"
    batch = {b"labels": [0, 1], b"data": random_pixels(2, 3072), key: Malicious(created, open)}
    content = pickle.dumps(batch, protocol=2)
    (tmp_path / "data_batch_3").write_bytes(content)
    fails(tmp_path, tmp_path / "data_batch_3", ".open")
    assert not created.exists()
    pickle.loads(content)[key].close()  # it is malicious
    assert created.exists()


def test_pickled_arrays_of_another_kind_are_refused(tmp_path):
    write_cifar10(tmp_path, random_pixels(12, 3, 32, 32), CIFAR_LABELS)
    for data in (
        np.array([None, 1], dtype=object),
        np.zeros((2, 3072)),
        random_pixels(2, 3071),
        np.zeros(2, dtype=[("a", "u1", 3072)]),
        [[0] * 3072] * 2,
    ):
        (tmp_path / "data_batch_2").write_bytes(pickle.dumps({b"labels": [0, 1], b"data": data}, protocol=2))
        fails(tmp_path, tmp_path / "data_batch_2", "`data` is no uint8 array")


def test_cifar_pickles_that_cannot_be_used(tmp_path):
    pixels = random_pixels(12, 3, 32, 32)
    path = tmp_path / "data_batch_4"

    def rewrite(content):
        write_cifar10(tmp_path, pixels, CIFAR_LABELS)
        path.write_bytes(content)

    good = {b"labels": [0, 1], b"data": pixels[:2].reshape(2, 3072)}
    for content in (b"", b"no pickle", python2_pickle(good)[:-2000], pickle.dumps([1]), pickle.dumps(7)):
        rewrite(content)
        fails(tmp_path, path, "not a CIFAR pickle")
    for labels in ([0], [0, "cat"], None, [0, 0.5]):
        rewrite(python3_pickle(good | {b"labels": labels}))
        fails(tmp_path, path, "`labels`")
    for label in (10, -1, 2**80):
        rewrite(python3_pickle(good | {b"labels": [0, label]}))
        fails(tmp_path, f"{path} row 1", "not in 0..9")
    path.unlink()
    fails(tmp_path, path, "No such file")
    rewrite(python2_pickle(good))
    (tmp_path / "batches.meta").write_bytes(python2_pickle({b"num_vis": 3072}))
    fails(tmp_path, "batches.meta", "label_names")


def write_cifar10_binary(folder, pixels, labels):
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels.reshape(len(pixels), 3072)], axis=1)
    for i, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        (folder / f"{name}.bin").write_bytes(rows[2 * i : 2 * i + 2].tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR_NAMES) + "\n\n")


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, folder):
    pixels = random_pixels(12, 3, 32, 32)
    write_cifar10_binary(tmp_path / folder, pixels, CIFAR_LABELS)
    splits = load_image_splits("x/y", tmp_path)
    assert_split(splits.train, pixels[:10], CIFAR_LABELS[:10])
    assert_split(splits.test, pixels[10:], CIFAR_LABELS[10:])
    assert splits.class_names == CIFAR_NAMES


def test_cifar10_binary_that_cannot_be_used(tmp_path):
    write_cifar10_binary(tmp_path, random_pixels(12, 3, 32, 32), [*CIFAR_LABELS[:-1], 10])
    fails(tmp_path, f"{tmp_path / 'test_batch.bin'} row 1", "label 10 is not in 0..9")
    path = tmp_path / "data_batch_5.bin"
    path.write_bytes(path.read_bytes()[:-1])
    fails(tmp_path, path, "1 + 3072")


def test_raw_pixels_are_converted_as_encoded_ones_are(tmp_path):
    colour = random_pixels(12, 3, 32, 32)
    write_cifar10_binary(tmp_path, colour, CIFAR_LABELS)
    images = load_image_splits("x/y", tmp_path, image_size=20, n_channels=1).test.images.numpy()
    for image, original in zip(images, colour[10:], strict=True):
        np.testing.assert_array_equal(image, decode_image(encoded(hwc(original)), "", 20, 1))
