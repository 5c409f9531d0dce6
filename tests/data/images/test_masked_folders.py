import shutil

import numpy as np
import pytest
import torch
from mask_sets import SIZE, blocks, fails, load, write_mask, write_pairs, write_picture
from PIL import Image

from data.errors import DataError
from data.images import masked_folders
from data.images.mask_layouts import find_pairs
from data.images.masked_folders import load_test_masks

BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)
VOC = {0: BLACK, 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def write(tmp_path):
    """Write four pictures whose masks are made by `write(saved)`, of (blocks of numbers, path)."""

    def pairs(save, n_values):
        for i in range(4):
            write_picture(tmp_path / f"images/a{i}.jpg", i)
            (tmp_path / "masks").mkdir(exist_ok=True)
            save(blocks(i, n_values), tmp_path / f"masks/a{i}.png")
        return tmp_path

    return pairs


def levels(*values):
    return lambda numbers, path: Image.fromarray(np.array(values, np.uint8)[numbers]).save(path)


def palette(colours):
    def save(numbers, path):
        image = Image.fromarray(np.array(list(colours), np.uint8)[numbers]).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        table = np.zeros((256, 3), np.uint8)
        for index, colour in colours.items():
            table[index] = colour
        image.putpalette(table.flatten().tolist())
        image.save(path)

    return save


def read(root, **options):
    """Class numbers by picture, at full size (30 wide, so that 24 x 24 squeezes columns), names and values."""
    splits = load(root, image_size=120, **options)
    masks = {
        name: mask
        for split in (splits.train, splits.test)
        for name, mask in zip(split.names, split.masks.numpy(), strict=True)
    }
    return masks, splits


def assert_masks(root, expected, **options):
    """Value j of the blocks is read as `expected[j]`."""
    masks, splits = read(root, **options)
    for i in range(4):
        numbers = blocks(i, len(expected)).repeat(5, 0).repeat(4, 1)
        np.testing.assert_array_equal(masks[f"images/a{i}"], np.array(expected)[numbers])
    return splits


@pytest.mark.parametrize(
    ("save", "expected", "names"),
    [
        (levels(0, 255), [0, 1], ("background", "foreground")),
        (levels(0, 1), [0, 1], ("background", "foreground")),
        (levels(0, 38), [0, 1], ("background", "foreground")),
        (levels(0, 1, 2), [0, 1, 2], ("0", "1", "2")),
        (levels(1, 2, 3), [0, 1, 2], ("1", "2", "3")),
        (levels(0, 2, 3), [0, 1, 2], ("0", "2", "3")),
        (levels(0, 1, 2, 255), [0, 1, 2, 255], ("0", "1", "2")),
        (levels(0, 128, 255), [0, 1, 2], ("0", "128", "255")),
        (levels(0, 85, 170, 255), [0, 1, 2, 3], ("0", "85", "170", "255")),
        (palette(VOC), [0, 1, 2, 255], ("0", "1", "2")),
        (palette({0: BLACK, 1: WHITE}), [0, 1], ("background", "foreground")),
        (palette({0: WHITE, 1: BLACK}), [1, 0], ("background", "foreground")),
        (levels(BLACK, WHITE), [0, 1], ("background", "foreground")),
        (levels(BLACK, RED), [0, 1], ("background", "foreground")),
        (levels(BLACK, RED, GREEN), [0, 2, 1], ("background", "#00ff00", "#ff0000")),
        (lambda numbers, path: Image.fromarray(numbers > 0).save(path), [0, 1], ("background", "foreground")),
        (lambda numbers, path: Image.fromarray(numbers.astype(np.uint16)).save(path), [0, 1, 2], ("0", "1", "2")),
        (
            lambda numbers, path: Image.fromarray((65535 * numbers).astype(np.uint16)).save(path),
            [0, 1],
            ("background", "foreground"),
        ),
        (levels((*RED, 0), (*RED, 255)), [0, 1], ("background", "foreground")),
        (levels((0, 0, 0, 0), (0, 0, 0, 255)), [0, 1], ("background", "foreground")),
    ],
)
def test_what_masks_hold_is_told_from_their_values(write, save, expected, names):
    splits = assert_masks(write(save, len(expected)), expected)
    assert splits.class_names == names
    assert f"{len(names)} classes" in splits.notes[-1]


def test_an_ignored_value(write):
    root = write(levels(0, 255, 128), 3)
    splits = assert_masks(root, [0, 1, 255], ignore_value=128)
    assert splits.class_names == ("background", "foreground") and "ignored: 128" in splits.notes[-1]
    root = write(levels(BLACK, RED, WHITE), 3)
    assert_masks(root, [0, 1, 255], ignore_value=255)


@pytest.mark.parametrize(
    ("save", "name", "table", "expected", "names"),
    [
        (levels(0, 1, 2), "classes.txt", "bg\ncat\ndog\nowl", [0, 1, 2], ("bg", "cat", "dog", "owl")),
        (levels(0, 255), "classes.txt", "background\ncell", [0, 1], ("background", "cell")),
        (levels(0, 255), "classes.txt", "cell", [0, 1], ("background", "cell")),
        (levels(BLACK, RED), "classes.txt", "background\ncell", [0, 1], ("background", "cell")),
        (
            levels(0, 255, 128),
            "classes.csv",
            "name,value\nbackground,0\npet,255\nborder,128",
            [0, 1, 2],
            ("background", "pet", "border"),
        ),
        (levels(0, 1, 255), "classes.csv", "background,0\ncat,1", [0, 1, 255], ("background", "cat")),
        (
            levels(BLACK, RED, WHITE),
            "class_dict.csv",
            "name,r,g,b\nbg,0,0,0\nred,255,0,0\nvoid,255,255,255",
            [0, 1, 255],
            ("bg", "red"),
        ),
        (
            palette(VOC),
            "labelmap.txt",
            "bg:0,0,0::\nplane:128,0,0::\nbike:0,128,0::\nvoid:224,224,192::",
            [0, 1, 2, 255],
            ("bg", "plane", "bike"),
        ),
        (palette(VOC), "classes.txt", "bg\nplane\nbike", [0, 1, 2, 255], ("bg", "plane", "bike")),
        (
            levels(0, 1, 2),
            "class_dict.csv",
            "name,r,g,b\nbg,0,0,0\nred,255,0,0\ngreen,0,255,0",
            [0, 1, 2],
            ("bg", "red", "green"),
        ),
        (palette({0: BLACK, 1: WHITE, 2: (128,) * 3}), "classes.txt", "a\nb\nc", [0, 1, 2], ("a", "b", "c")),
        (levels(0, 1, 2), "classes.txt", "a\nb\nignore", [0, 1, 255], ("a", "b")),
        (levels(0, 255), "classes.csv", "void,0\ncell,255", [0, 1], ("void", "cell")),
    ],
)
def test_listed_classes(write, save, name, table, expected, names):
    root = write(save, len(expected))
    (root / name).write_text(table)
    splits = assert_masks(root, expected)
    assert splits.class_names == names and str(root / name) in " ".join(splits.notes)


def test_of_few_pictures_the_test_gets_one_with_something_on_it(tmp_path):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png", values=(0, 0))
    held_out = set(load_pairs(tmp_path))
    for i in range(12):
        if f"images/a{i}" not in held_out:
            write_mask(tmp_path / f"masks/a{i}.png", (0, 255), i)
    splits = load(tmp_path)
    assert held_out < set(splits.test.names) and len(splits.test) == len(held_out) + 1
    assert len(splits.test.masks.unique()) == len(splits.train.masks.unique()) == 2
    assert not set(splits.train.names) & set(splits.test.names) and len(splits.train) + len(splits.test) == 12


def load_pairs(root):
    return [pair.name for pair in find_pairs(root).test]


def test_values_that_mean_nothing_or_two_things_are_refused(write, tmp_path):
    root, odd = write(levels(0, 255), 2), tmp_path / "masks/a2.png"
    write_mask(odd, (0, 100, 255))
    fails(root, odd, "holds 100", "0, 100, 255", "classes.csv", "--ignore_value")
    write_mask(odd, (0, 1))
    fails(root, odd, "255", "--ignore_value")
    write(levels(0, 0), 2)
    fails(root, "value 0 alone")
    write(levels(0, 1, 2), 3)
    (root / "classes.txt").write_text("background\ncat\n")
    fails(root, root / "masks/a0.png", "holds 2", "2 listed classes are 0, 1")
    write(levels(BLACK, RED, GREEN), 3)
    (root / "classes.txt").write_text("bg,0,0,0\nred,255,0,0\n")
    fails(root, "masks/a0.png holds #00ff00", "#000000, #ff0000")
    (root / "masks/classes.txt").write_text("other\n")
    fails(root, root / "classes.txt", root / "masks/classes.txt", "different classes")


def test_a_photograph_is_no_mask(write):
    root = write(lambda numbers, path: write_picture(path, int(numbers.sum())), 2)
    fails(root, "colours")
    for path in (root / "masks").iterdir():
        Image.open(path).convert("L").save(path)
    fails(root, "no class numbers")


def large(seed, **options):
    return Image.fromarray((255 * blocks(seed, 2)).astype(np.uint8)).resize((300, 240), **options)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_black_and_white_that_was_blurred_counts_as_the_nearer(tmp_path, suffix):
    for i in range(4):
        write_picture(tmp_path / f"images/a{i}.jpg", i, size=(300, 240))
        (tmp_path / "masks").mkdir(exist_ok=True)
        large(i, resample=Image.Resampling.BICUBIC).save(tmp_path / f"masks/a{i}.{suffix}")
    masks, splits = read(tmp_path)
    assert splits.class_names == ("background", "foreground") and "nearest" in splits.notes[-1]
    for i in range(4):
        expected = np.asarray(large(i, resample=Image.Resampling.BICUBIC)) > 127
        exact = np.asarray(Image.fromarray(expected).resize((120, 120), Image.Resampling.NEAREST))
        assert ((masks[f"images/a{i}"] == 1) == exact).mean() > (0.99 if suffix == "jpg" else 0.9999)


def test_class_numbers_and_colours_in_jpeg_are_refused_unless_listed_far_apart(tmp_path):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.jpg", n=4, values=(0, 1, 2))
    fails(tmp_path, "JPEG", "PNG")
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.jpg", n=4, values=(BLACK, RED, GREEN), quality=95)
    fails(tmp_path, "JPEG", "PNG")
    (tmp_path / "classes.csv").write_text("bg,0,0,0\nred,255,0,0\ngreen,0,255,0\n")
    masks, splits = read(tmp_path)
    assert splits.class_names == ("bg", "red", "green")
    right = [(masks[f"images/a{i}"] == blocks(i, 3).repeat(5, 0).repeat(4, 1)).mean() for i in range(4)]
    assert min(right) > 0.85  # but for the seams


def test_a_mask_of_another_size(tmp_path):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png", n=4)
    write_mask(tmp_path / "masks/a2.png", (0, 255), size=(36, 24))
    fails(tmp_path, tmp_path / "masks/a2.png", "36x24", tmp_path / "images/a2.jpg", "30x24")


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("drawn_on", ["upright", "stored"])
def test_the_mask_of_a_turned_photograph(tmp_path, orientation, drawn_on):
    """The picture is its own mask, so both have to be turned alike; a half turn is taken for upright."""
    stored = 255 * blocks(1, 2).astype(np.uint8)
    upright = np.rot90(stored, {3: 2, 6: -1}[orientation])
    if orientation == 3 and drawn_on == "stored":
        pytest.skip("the sizes of both are equal")
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_pairs(tmp_path, "images/a{}.png", "masks/a{}.png", n=3)
    Image.fromarray(stored).save(tmp_path / "images/a1.png", exif=exif)
    Image.fromarray(upright if drawn_on == "upright" else stored).save(tmp_path / "masks/a1.png")
    splits = load(tmp_path, image_size=120)
    for split in (splits.train, splits.test):
        if "images/a1" in split.names:
            i = split.names.index("images/a1")
            assert ((split.images[i, 0] > 127) == (split.masks[i] == 1)).float().mean() > 0.95


def test_pixels_are_cached_and_the_meaning_of_values_is_not(tmp_path, monkeypatch):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png", n=4, values=(0, 1, 2))
    first = load(tmp_path)
    with monkeypatch.context() as context:
        context.setattr(masked_folders, "decode_pair", None)  # not to be called
        again = load(tmp_path)
        assert again.train.masks.equal(first.train.masks) and again.train.images.equal(first.train.images)
        (tmp_path / "classes.txt").write_text("a\nb\nc\n")
        assert load(tmp_path).class_names == ("a", "b", "c")
    write_mask(tmp_path / "masks/a0.png", (0, 1, 2), seed=9)
    assert not load(tmp_path).train.masks.equal(first.train.masks)


def test_damaged_files_are_named(tmp_path):
    write_pairs(tmp_path, "images/a{}.jpg", "masks/a{}.png", n=4)
    for path in (tmp_path / "masks/a1.png", tmp_path / "images/a2.jpg"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fails(tmp_path, f"{path}: cannot decode")
        path.write_bytes(whole)
    assert SIZE == (30, 24)


@pytest.mark.parametrize("split", ["folders", "list", "hash"])
@pytest.mark.parametrize("values", [(0, 255), (0, 1, 2), ((0, 0, 0), (255, 0, 0), (0, 255, 0))])
def test_masks_are_tested_on_as_training_on_them_would(tmp_path, split, values):
    """With the classes that a run has of the folder; a test split may be alone."""
    within = {"folders": ("train/", "test/"), "list": ("", ""), "hash": ("", "")}[split]
    for i in range(12):
        part = within[i >= 9]
        write_picture(tmp_path / f"{part}images/a{i}.png", i)
        write_mask(tmp_path / f"{part}masks/a{i}.png", values, i)
    if split == "list":
        (tmp_path / "test.txt").write_text("".join(f"a{i}\n" for i in range(9, 12)))
    splits = load(tmp_path)
    run = splits.class_names, splits.mask_values

    def tested(**options):
        found, _ = load_test_masks(tmp_path, *run, image_size=16, **options)
        return found

    def assert_same(found, expected):
        assert found.names == expected.names
        assert torch.equal(found.images, expected.images) and torch.equal(found.masks, expected.masks)

    assert_same(tested(), splits.test)
    assert len(tested(whole=True)) == 12
    if split == "folders":
        shutil.rmtree(tmp_path / "train")
        assert_same(tested(), splits.test)


def test_classes_of_masks_to_test_on_are_known_by_their_names(tmp_path):
    write_pairs(tmp_path, "images/{}.png", "masks/{}.png", n=4, values=(10, 20, 30))
    (tmp_path / "classes.csv").write_text("cell,10\nrim,20\nground,30\n")
    splits = load(tmp_path)
    names = ["ground", "rim", "cell"]
    found, notes = load_test_masks(tmp_path, names, [0, 1, 2], image_size=16, whole=True)
    own = torch.cat([splits.train.masks, splits.test.masks])
    order = [(splits.train.names + splits.test.names).index(name) for name in found.names]
    assert torch.equal(found.masks, 2 - own[order]) and any("classes listed in" in note for note in notes)
    with pytest.raises(DataError, match="has masks of cell, rim, ground, but the run tells apart ground, cell: "):
        load_test_masks(tmp_path, ["ground", "cell"], [0, 255], image_size=16)
