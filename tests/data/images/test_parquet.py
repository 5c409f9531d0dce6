import pyarrow
import pyarrow.parquet
import pytest
from image_sets import CIFAR_NAMES, NAMES, SHARED, assert_split, fails, png_set, write_parquet

from data.images.labelled import load_image_splits


@pytest.mark.parametrize("folder", [".", "data", "plain_text", "some-config"])
@pytest.mark.parametrize("held_out", ["test", "validation", "valid"])
def test_parquet_shards(tmp_path, folder, held_out):
    pixels, contents = png_set(7)
    write_parquet(tmp_path / folder / "train-00000-of-00002.parquet", contents[:3], [0, 1, 2])
    write_parquet(tmp_path / folder / "train-00001-of-00002.parquet", contents[3:5], [2, 1])
    write_parquet(tmp_path / folder / f"{held_out}-00000-of-00001.parquet", contents[5:], [0, 0])
    splits = load_image_splits("not/read", str(tmp_path))
    assert_split(splits.train, pixels[:5], [0, 1, 2, 2, 1])
    assert_split(splits.test, pixels[5:], [0, 0])
    assert splits.class_names == NAMES


def test_parquet_columns_by_other_names(tmp_path):
    pixels, contents = png_set(3)
    options = dict(image_name="image", label_name="labels", names=None, plain=True)
    write_parquet(tmp_path / "train.parquet", contents[:2], [0, 3], **options)
    write_parquet(tmp_path / "test.parquet", contents[2:], [1], **options)
    splits = load_image_splits("x/y", tmp_path)
    assert_split(splits.train, pixels[:2], [0, 3])
    assert splits.class_names == ("0", "1", "2", "3")


def test_the_fine_labels_of_two_kinds(tmp_path):
    images = [{"bytes": content} for content in png_set(2)[1]]
    for split in ("train", "test"):
        table = pyarrow.table({"coarse_label": [0, 1], "img": images, "fine_label": [4, 2]})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    assert load_image_splits("x/y", tmp_path).train.labels.tolist() == [4, 2]


def test_parquet_that_cannot_be_used(tmp_path):
    _, contents = png_set(300)
    train, test = tmp_path / "train-00000-of-00001.parquet", tmp_path / "test.parquet"
    write_parquet(train, contents, [0] * 300)
    fails(tmp_path, tmp_path, "no test-*.parquet")
    write_parquet(test, contents[:1], [1])

    damaged = [*contents]
    damaged[270], damaged[290] = damaged[270][:-40], b""
    write_parquet(train, damaged, [0] * 300)
    fails(tmp_path, f"{train} row 270")

    for label in (3, -1, 2**62):
        write_parquet(train, contents[:3], [0, label, 2])
        fails(tmp_path, f"{train} row 1", f"label {label} is not in 0..2")
    write_parquet(train, contents[:3], [0, 2**62, 2], names=None)
    fails(tmp_path, f"{train} row 1", f"label {2**62}")
    write_parquet(train, contents[:3], [0, None, 2])
    fails(tmp_path, f"{train} row 1", "`label`")
    write_parquet(train, [contents[0], contents[1], None], [0, 0, 2])
    fails(tmp_path, f"{train} row 2", "`img`")
    write_parquet(train, [], [])
    fails(tmp_path, "training split", "empty")
    write_parquet(train, contents[:3], [0, 1, 2], image_name="picture")
    fails(tmp_path, train, "picture: struct<bytes", "id: string", "label: int64")
    pyarrow.parquet.write_table(pyarrow.table({"img": contents[:1], "label": ["cat"]}), train)
    fails(tmp_path, train, "label: string")
    train.write_bytes(b"PAR1 and no more")
    fails(tmp_path, train, "fetch it again")


def test_a_missing_shard_and_two_data_sets(tmp_path):
    _, contents = png_set(1)
    for name in ("train-00000-of-00002", "test"):
        write_parquet(tmp_path / "a" / f"{name}.parquet", contents, [0])
    fails(tmp_path, "1 of", "2 shards")
    (tmp_path / "a" / "train-00000-of-00002.parquet").rename(tmp_path / "a" / "train.parquet")
    load_image_splits("x/y", tmp_path)
    write_parquet(tmp_path / "b" / "train.parquet", contents, [0])
    fails(tmp_path, "several", "a, b")


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="CIFAR-10 is not at hand")
def test_real_cifar10():
    splits = load_image_splits("x/y", str(SHARED / "cifar10"))
    assert splits.train.images.shape == (50_000, 3, 32, 32) and splits.test.images.shape == (10_000, 3, 32, 32)
    assert splits.class_names == CIFAR_NAMES
    assert splits.train.labels.bincount().tolist() == [5_000] * 10
    assert splits.test.labels.bincount().tolist() == [1_000] * 10
    means = [splits.train.images[:, channel].double().mean().item() for channel in range(3)]
    assert means == pytest.approx([125.307, 122.950, 113.865], abs=1e-3)
