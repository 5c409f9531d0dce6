import gzip
import shutil
import struct

import datasets
import numpy as np
import pytest
import torch
from image_sets import NAMES, assert_split, encoded, fails, png_set, random_pixels, write_parquet

from data.errors import DataError
from data.images import labelled as labelled_images
from data.images.labelled import ImageSplits, load_image_splits, load_test_images, require_trainable

# Folders


def test_decoded_images_are_cached_by_their_content(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))
    pixels, contents = png_set(3)

    def load(**options):
        return load_image_splits("x/y", tmp_path, **options).train.images

    write_parquet(tmp_path / "train.parquet", contents[:2], [0, 1])
    write_parquet(tmp_path / "test.parquet", contents[2:], [2])
    first, small, grey = load(), load(image_size=16), load(n_channels=1)
    assert small.shape == (2, 3, 16, 16) and grey.shape == (2, 1, 32, 32)
    with monkeypatch.context() as context:
        context.setattr(labelled_images, "decode_image", None)  # not to be called
        assert torch.equal(load(), first) and torch.equal(load(image_size=16), small)
        assert torch.equal(load(n_channels=1), grey)
    write_parquet(tmp_path / "train.parquet", contents[1::-1], [0, 1])
    np.testing.assert_array_equal(load().numpy(), pixels[1::-1])


def test_a_data_dir_without_any_layout(tmp_path):
    fails(tmp_path / "none", tmp_path / "none", "not a folder")
    layouts = ("parquet", "cifar-10-batches-py", "cifar-10-batches-bin", "idx3-ubyte", "train/CLASS")
    fails(tmp_path, tmp_path, *layouts)
    for split in ("train", "test"):  # images without classes
        (tmp_path / split).mkdir()
        (tmp_path / split / "0000.png").write_bytes(encoded(random_pixels(1, 8, 8)[0]))
    fails(tmp_path, tmp_path, *layouts)


# A test split alone


def write_test_of_layout(layout: str, root, pixels, labels) -> tuple[str, ...]:
    """The test split of a data set, and nothing to train on; returns the classes' names."""
    contents = [encoded(image.transpose(1, 2, 0)) for image in pixels]
    root.mkdir(exist_ok=True)
    if layout == "parquet":
        write_parquet(root / "data" / "test-00000-of-00001.parquet", contents, labels)
        return NAMES
    if layout == "class folders":
        for i, (content, label) in enumerate(zip(contents, labels, strict=True)):
            (root / "val" / NAMES[label]).mkdir(parents=True, exist_ok=True)
            (root / "val" / NAMES[label] / f"{i}.png").write_bytes(content)
        return NAMES
    if layout == "cifar-10-batches-bin":
        rows = b"".join(bytes([label]) + image.tobytes() for image, label in zip(pixels, labels, strict=True))
        (root / "test_batch.bin").write_bytes(rows)
        (root / "batches.meta.txt").write_text("\n".join(NAMES))
        return NAMES
    grey = np.ascontiguousarray(pixels[:, 0])
    for name, array in (("images", grey), ("labels", np.array(labels, np.uint8))):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (root / f"t10k-{name}-idx{array.ndim}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return ("0", "1", "2")


@pytest.mark.parametrize("layout", ["parquet", "class folders", "cifar-10-batches-bin", "mnist"])
def test_a_test_split_alone_is_read_by_the_names_of_its_classes(tmp_path, layout):
    pixels, labels = random_pixels(4, 3, 32, 32), [0, 1, 1, 2]
    names = write_test_of_layout(layout, tmp_path / "data", pixels, labels)
    channels = 1 if layout == "mnist" else 3
    options = {"image_size": 32, "n_channels": channels}
    images = load_test_images(tmp_path / "data", ["extra", *reversed(names)], **options)
    assert_split(images, pixels[:, :channels], [3, 2, 2, 1])
    with pytest.raises(
        DataError, match=f"has images of {names[2]}, but the run tells apart {names[0]}, {names[1]}: "
    ):
        load_test_images(tmp_path / "data", names[:2], **options)
    fails(tmp_path / "data", "the training split of", "is empty")


def test_of_a_whole_data_set_the_test_split_is_taken_or_all(tmp_path):
    pixels, contents = png_set(5)
    write_parquet(tmp_path / "train.parquet", contents[:3], [0, 1, 2])
    write_parquet(tmp_path / "test.parquet", contents[3:], [2, 0])
    options = {"image_size": 32, "n_channels": 3}
    assert_split(load_test_images(tmp_path, NAMES, **options), pixels[3:], [2, 0])
    assert_split(load_test_images(tmp_path, NAMES, whole=True, **options), pixels, [0, 1, 2, 2, 0])
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(DataError, match="holds none of the layouts"):
        load_test_images(tmp_path, NAMES, **options)


# The hub


def hub_split(contents, labels):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    images = [{"bytes": content, "path": None} for content in contents]
    return datasets.Dataset.from_dict({"img": images, "label": labels}, features=features)


def test_hub_data_set(monkeypatch):
    pixels, contents = png_set(4)
    splits = {"train": hub_split(contents[:3], [2, 0, 1]), "validation": hub_split(contents[3:], [1])}
    calls = []

    def load(dataset, **options):
        calls.append(dataset)
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(labelled_images, "load_from_hub", load)
    loaded = load_image_splits("x/y", None)
    assert calls == ["x/y"]
    assert_split(loaded.train, pixels[:3], [2, 0, 1])
    assert_split(loaded.test, pixels[3:], [1])
    assert loaded.class_names == NAMES

    splits["train"] = hub_split([contents[0], contents[1][:-40]], [0, 0])
    with pytest.raises(DataError, match="x/y train row 1"):
        load_image_splits("x/y", None)
    del splits["validation"]
    with pytest.raises(DataError, match="it has train"):
        load_image_splits("x/y", None)


def test_without_network_the_error_names_the_ways_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError) as error:
        load_image_splits("nobody/no-such-data-set", None)
    for part in ("nobody/no-such-data-set from the", "network", "--data_dir", "parquet", "demo"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_that_the_hub_does_not_have(monkeypatch):
    def load_dataset(*arguments, **options):
        raise datasets.exceptions.DatasetNotFoundError("no such data set")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="cannot fetch x/y from"):
        load_image_splits("x/y", None)


def splits_of(train_labels, test_labels, names=("cat", "dog", "owl")) -> ImageSplits:
    train, test = map(torch.tensor, (train_labels, test_labels))
    return ImageSplits.of(torch.zeros(len(train), 1, 8, 8), train, torch.zeros(len(test), 1, 8, 8), test, names)


@pytest.mark.parametrize(
    "train, test, names, n_parts, message",
    [
        ([0, 0], [0, 0], ("cat",), 1, "all images are of one class, cat: give"),
        ([0, 1], [0, 1, 2], ("cat", "dog", "owl"), 1, "no training image is of class owl: add some"),
        ([0, 1, 2], [0, 0, 0], ("cat", "dog", "owl"), 1, "no test image is of class dog, owl: add some"),
        ([0, 1, 2] * 9, [0, 1, 2], ("cat", "dog", "owl"), 4, "27 training and 3 test images are too few for 4"),
    ],
)
def test_what_cannot_be_trained_or_tested_on_is_refused(train, test, names, n_parts, message):
    with pytest.raises(DataError, match=f"^{message}"):
        require_trainable(splits_of(train, test, names), n_parts)


def test_an_image_of_each_class_in_both_splits_is_enough():
    require_trainable(splits_of([0, 1, 2], [0, 1, 2]), n_parts=3)
