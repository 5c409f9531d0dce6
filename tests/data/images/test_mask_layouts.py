import shutil

import pytest
from mask_sets import write_mask, write_pairs, write_picture

from data.errors import DataError
from data.images.mask_layouts import find_pairs, words_of_folder


def refused(root, *parts):
    with pytest.raises(DataError) as error:
        find_pairs(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


def files(pairs):
    return [(pair.picture.name, pair.mask.name) for pair in pairs]


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("images/a{}.jpg", "masks/a{}.png"),
        ("imgs/a{}.JPG", "labels/a{}_mask.PNG"),
        ("imgs/0cd_{}.jpg", "masks/0cd_{}_mask.gif"),
        ("image/a b {}.jpg", "ground_truth/a b {}.png"),
        ("images_512/a{}.jpg", "masks_512/a{}.png"),
        ("JPEGImages/a{}.jpg", "SegmentationClass/a{}.png"),
        ("leftImg8bit/x/a_{}_leftImg8bit.png", "gtFine/x/a_{}_gtFine_labelIds.png"),
        ("images/image_{}.jpg", "masks/mask_{}.png"),
        ("images/img{}.jpg", "masks/mask{}.png"),
        ("images/x/y/a{}.jpg", "masks/x/y/a{}.png"),
        ("photos of mine/a{}.jpg", "masks/a{}.png"),
        ("a{}.jpg", "masks/a{}.png"),
        ("my/my/images/a{}.jpg", "my/my/masks/a{}.png"),
        ("a{}.jpg", "a{}_mask.png"),
        ("a ({}).png", "a ({})_mask.png"),
        ("images/a{}.tif", "images/a{}_mask.tif"),
        ("{}_sat.jpg", "{}_mask.png"),
        ("a{}.jpg", "a{}.png"),
    ],
)
def test_each_picture_gets_its_mask(tmp_path, picture, mask):
    write_pairs(tmp_path, picture, mask)
    found = find_pairs(tmp_path)
    pairs = found.train + found.test
    assert sorted((p.picture, p.mask) for p in pairs) == sorted(
        (tmp_path / picture.format(i), tmp_path / mask.format(i)) for i in range(12)
    )
    assert len(found.test) == 2 and "no split" in found.notes[0]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("train/images/a{}.jpg", "train/masks/a{}.png"), ("test/images/a{}.jpg", "test/masks/a{}.png")),
        (
            ("images/training/a{}.jpg", "annotations/training/a{}.png"),
            ("images/validation/a{}.jpg", "annotations/validation/a{}.png"),
        ),
        (("train/a{}.png", "train_labels/a{}_L.png"), ("val/a{}.png", "val_labels/a{}_L.png")),
        (("train/a{}.png", "trainannot/a{}.png"), ("test/a{}.png", "testannot/a{}.png")),
        (("train/a{}.jpg", "train/a{}_mask.png"), ("valid/a{}.jpg", "valid/a{}_mask.png")),
        (("images/train/a{}.jpg", "masks/a{}.png"), ("images/test/b{}.jpg", "masks/b{}.png")),
    ],
)
def test_folders_of_splits(tmp_path, train, test):
    write_pairs(tmp_path, *train, n=5)
    write_pairs(tmp_path, *test, n=3)
    found = find_pairs(tmp_path)
    for pairs, (picture, mask), n in ((found.train, train, 5), (found.test, test, 3)):
        assert [(p.picture, p.mask) for p in pairs] == [
            (tmp_path / picture.format(i), tmp_path / mask.format(i)) for i in range(n)
        ]


def test_the_test_folder_comes_before_validation_which_is_said_to_be_unused(tmp_path):
    for split, n in (("train", 4), ("val", 3), ("test", 2)):
        write_pairs(tmp_path, f"{split}/images/a{{}}.jpg", f"{split}/masks/a{{}}.png", n=n)
    found = find_pairs(tmp_path)
    assert (len(found.train), len(found.test)) == (4, 2) and "3 pictures" in found.notes[0]


def test_a_split_without_any_mask_is_left_out_with_a_word(tmp_path):
    write_pairs(tmp_path, "train/a{}.jpg", "train_masks/a{}_mask.gif")
    for i in range(4):
        write_picture(tmp_path / f"test/b{i}.jpg", i)
    found = find_pairs(tmp_path)
    assert len(found.train) + len(found.test) == 12 and "test have no masks" in found.notes[0]


@pytest.mark.parametrize("folder", ["", "ImageSets/Segmentation", "splits"])
@pytest.mark.parametrize("lines", ["a3\na1\n", "a3.jpg\na1.jpg\n", "images/a3.jpg masks/a3.png\n/x/a1.jpg\n"])
def test_lists_decide_the_split_and_its_order(tmp_path, folder, lines):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png")
    write_picture(tmp_path / "images/without_a_mask.jpg")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "train.txt").write_text(lines)
    (tmp_path / folder / "val.txt").write_bytes(b"\xef\xbb\xbfa5\r\n")
    found = find_pairs(tmp_path)
    assert files(found.train) == [("a3.jpg", "a3.png"), ("a1.jpg", "a1.png")]
    assert files(found.test) == [("a5.jpg", "a5.png")]


def test_with_one_list_the_rest_is_the_other_split(tmp_path):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png", n=4)
    (tmp_path / "test.txt").write_text("a1\n")
    assert [p.name for p in find_pairs(tmp_path).train] == ["images/a0", "images/a2", "images/a3"]
    (tmp_path / "test.txt").rename(tmp_path / "train.txt")
    assert [p.name for p in find_pairs(tmp_path).test] == ["images/a0", "images/a2", "images/a3"]
    (tmp_path / "train.txt").write_text("a0\na1\na2\na3\n")
    found = find_pairs(tmp_path)
    assert len(found.test) == 2 and len(found.train) == 2 and "lists all pictures" in found.notes[1]


def test_lists_that_cannot_be_followed(tmp_path):
    write_pairs(tmp_path, "images/x/a{}.jpg", "masks/x/a{}.png", n=3)
    write_pairs(tmp_path, "images/y/a{}.jpg", "masks/y/a{}.png", n=1)
    write_picture(tmp_path / "images/bare.jpg")
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    test.write_text("a2\n")
    for text, *parts in (
        ("a1\nzz\n", f"{train} line 2, zz", "no picture is called that"),
        ("a1\nbare\n", f"{train} line 2, bare", "has no mask"),
        ("a1\na1\n", "line 2", "stands in train.txt line 1"),
        ("a2\n", f"{test} line 1", "stands in train.txt line 1"),
        ("a0\n", "several pictures"),
        ("# nothing\n", "no picture for the training split"),
    ):
        train.write_text(text)
        refused(tmp_path, *parts)
    train.write_text("x/a0\ny/a0\n")
    assert len(find_pairs(tmp_path).train) == 2


def test_what_is_not_data_is_not_looked_at(tmp_path):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png", n=4)
    (tmp_path / "__MACOSX" / "images").mkdir(parents=True)
    (tmp_path / ".hidden" / "images").mkdir(parents=True)
    for name in (
        "images/.DS_Store",
        "images/Thumbs.db",
        "images/._a1.jpg",
        "masks/a1.json",
        "README.md",
        "__MACOSX/images/a1.jpg",
        ".hidden/images/a9.jpg",
    ):
        (tmp_path / name).write_text("x")
    write_picture(tmp_path / "preview.png")
    write_picture(tmp_path / "SegmentationObject/a1.png")
    write_picture(tmp_path / "masks/a1_overlay.png")
    write_picture(tmp_path / "masks/a2_color.png")
    found = find_pairs(tmp_path)
    assert len(found.train + found.test) == 4
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert find_pairs(tmp_path) == found


def test_what_is_missing_or_there_twice(tmp_path):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png", n=4)
    lonely = tmp_path / "images/b.jpg"
    write_picture(lonely)
    refused(tmp_path, f"{lonely} has no mask", "b_mask.png", "train.txt")
    lonely.unlink()
    write_mask(tmp_path / "masks/c.png", (0, 255))
    refused(tmp_path, f"{tmp_path / 'masks/c.png'} has no picture")
    (tmp_path / "masks/c.png").unlink()
    write_picture(tmp_path / "images/a1.png")
    refused(tmp_path, "images/a1.jpg", "images/a1.png", "masks/a1.png")
    (tmp_path / "images/a1.png").unlink()
    write_mask(tmp_path / "masks/a1.gif", (0, 255))
    refused(tmp_path, "masks/a1.gif", "masks/a1.png", "are both the mask of")


def test_folders_that_hold_no_pairs(tmp_path):
    refused(tmp_path, tmp_path, "images/NAME.jpg", "masks/NAME.png", "NAME_mask.png", "train.txt")
    write_picture(tmp_path / "cat/1.jpg")
    refused(tmp_path, "no pictures with masks")
    write_mask(tmp_path / "masks/other.png", (0, 255))
    refused(tmp_path, "cat/1.jpg and masks/other.png", "NAME_mask")
    shutil.rmtree(tmp_path / "masks")
    write_mask(tmp_path / "masks/1.png", (0, 255))
    refused(tmp_path, "one picture")
    shutil.move(tmp_path / "cat", tmp_path / "test")
    refused(tmp_path, "test split alone")


def test_equal_pictures_are_held_out_together_and_a_split_does_not_hang_on_names(tmp_path):
    write_pairs(tmp_path / "a", "images/a{}.jpg", "masks/a{}.png", n=40)
    for i in range(40):
        shutil.copy(tmp_path / f"a/images/a{i}.jpg", tmp_path / f"a/images/copy{i}.jpg")
        shutil.copy(tmp_path / f"a/masks/a{i}.png", tmp_path / f"a/masks/copy{i}.png")
    held_out = {pair.picture.read_bytes() for pair in find_pairs(tmp_path / "a").test}
    assert 1 <= len(held_out) <= 10
    assert not held_out & {pair.picture.read_bytes() for pair in find_pairs(tmp_path / "a").train}


@pytest.mark.parametrize(
    ("name", "kind", "split"),
    [
        ("images", "picture", None),
        ("Train_Masks", "mask", "train"),
        ("testannot", "mask", "test"),
        ("val", None, "valid"),
        ("image_masks", "mask", None),
        ("train of thought", None, None),
        ("cats", None, None),
        ("SegmentationObject", None, None),
    ],
)
def test_what_a_folder_s_name_says(name, kind, split):
    assert words_of_folder(name) == (kind, split)
