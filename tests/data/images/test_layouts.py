import tarfile

import pytest
from image_sets import assert_split, encoded, fails, hwc, png_set, random_pixels, write_parquet
from test_idx import write_mnist

from data.images.labelled import load_image_splits


def write_class(folder, pixels, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        (folder / f"{i:04}{suffix}").write_bytes(encoded(hwc(image)))


@pytest.mark.parametrize("folder", [".", "plain_text", "refs/plain_text"])
def test_the_hub_s_converted_parquet(tmp_path, folder):
    pixels, contents = png_set(5)
    write_parquet(tmp_path / folder / "train" / "0000.parquet", contents[:2], [0, 1])
    write_parquet(tmp_path / folder / "train" / "0001.parquet", contents[2:4], [2, 1])
    write_parquet(tmp_path / folder / "validation" / "0000.parquet", contents[4:], [0])
    splits = load_image_splits("x/y", tmp_path)
    assert_split(splits.train, pixels[:4], [0, 1, 2, 1])
    assert_split(splits.test, pixels[4:], [0])


def test_configs_of_converted_parquet_are_named(tmp_path):
    _, contents = png_set(2)
    for config in ("cropped_digits", "full_numbers"):
        for split in ("train", "test"):
            write_parquet(tmp_path / config / split / "0000.parquet", contents, [0, 1])
    fails(tmp_path, "several data sets", "cropped_digits, full_numbers", "--data_dir")
    assert len(load_image_splits("x/y", tmp_path / "full_numbers").train) == 2
    fails(tmp_path / "full_numbers" / "train", "none of the layouts")


@pytest.mark.parametrize("nested", ["raw", "MNIST/raw", "FashionMNIST/raw"])
def test_mnist_as_torchvision_leaves_it(tmp_path, nested):
    pixels = random_pixels(5, 28, 28)
    (tmp_path / nested).mkdir(parents=True)
    write_mnist(tmp_path / nested, pixels[:3], [2, 0, 1], pixels[3:], [1, 1], gzipped=True)
    write_mnist(tmp_path / nested, pixels[:3], [2, 0, 1], pixels[3:], [1, 1], gzipped=False)
    splits = load_image_splits("x/y", tmp_path, image_size=28, n_channels=1)
    assert_split(splits.train, pixels[:3, None], [2, 0, 1])


def test_two_data_sets_side_by_side_are_named_and_none_is_taken(tmp_path):
    pixels = random_pixels(5, 28, 28)
    for name in ("MNIST/raw", "FashionMNIST/raw"):
        (tmp_path / name).mkdir(parents=True)
        write_mnist(tmp_path / name, pixels[:3], [2, 0, 1], pixels[3:], [1, 1])
    fails(tmp_path, "FashionMNIST/raw, MNIST/raw")
    assert len(load_image_splits("x/y", tmp_path / "MNIST", image_size=28, n_channels=1).train) == 3


@pytest.mark.parametrize("wrapper", ["", "pictures", "a/b"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Val"), ("training", "testing")])
def test_class_folders_with_what_people_have_in_them(tmp_path, wrapper, train, test):
    pixels = random_pixels(6, 3, 8, 8)
    root = tmp_path / wrapper
    write_class(root / train / "apple", pixels[:2], ".PNG")
    write_class(root / train / "boat" / "2019" / "summer", pixels[2:4], ".Png")
    write_class(root / test / "apple", pixels[4:5])
    write_class(root / test / "boat", pixels[5:])
    for junk in (".DS_Store", "Thumbs.db", "._0000.png", ".ipynb_checkpoints/0000.png"):
        path = root / train / "apple" / junk
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
    (root / "__MACOSX" / train / "apple").mkdir(parents=True)
    splits = load_image_splits("x/y", tmp_path, image_size=8)
    assert splits.class_names == ("apple", "boat")
    assert_split(splits.train, pixels[:4], [0, 0, 1, 1])
    assert_split(splits.test, pixels[4:], [0, 1])


def test_an_archive_is_read_where_it_is_not_unpacked(tmp_path):
    pixels = random_pixels(6, 3, 32, 32)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (folder / f"{name}.bin").write_bytes(bytes([i % 2]) + pixels[i].tobytes())
    (folder / "batches.meta.txt").write_text("apple\nboat\n")
    expected = load_image_splits("x/y", tmp_path)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    assert_split(load_image_splits("x/y", tmp_path).train, pixels[:5], [0, 1, 0, 1, 0])  # both: it is unpacked
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    splits = load_image_splits("x/y", tmp_path)
    assert splits.train.images.equal(expected.train.images) and splits.class_names == ("apple", "boat")
    archive.write_bytes(archive.read_bytes()[:-100])
    fails(tmp_path, f"cannot unpack {archive}")
