import pytest
from image_sets import assert_split, encoded, fails, hwc, random_pixels

from data.images import class_folders
from data.images.labelled import load_image_splits, require_trainable


def write_class(folder, pixels, form="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        (folder / f"{i:04}.{form}").write_bytes(encoded(hwc(image), form.upper()))


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation"])
def test_class_folders(tmp_path, held_out):
    pixels = random_pixels(5, 3, 32, 32)
    write_class(tmp_path / "train" / "boat", pixels[:2])
    write_class(tmp_path / "train" / "apple", pixels[2:4], "bmp")
    write_class(tmp_path / held_out / "boat", pixels[4:])
    (tmp_path / "train" / "boat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "boat" / "._0000.png").write_bytes(b"no image")
    (tmp_path / "train" / ".hidden").mkdir()
    splits = load_image_splits("x/y", tmp_path)
    assert splits.class_names == ("apple", "boat")
    assert_split(splits.train, pixels[[2, 3, 0, 1]], [0, 0, 1, 1])
    assert_split(splits.test, pixels[4:], [1])


@pytest.mark.parametrize("root", [".", "train"])
def test_class_folders_alone_are_split_by_content(tmp_path, root):
    pixels = random_pixels(300, 3, 4, 4)
    write_class(tmp_path / root / "apple", pixels[:200])
    write_class(tmp_path / root / "boat", pixels[200:])
    write_class(tmp_path / root / "cat", pixels[:100])  # the same files as another class
    splits = load_image_splits("x/y", tmp_path, image_size=4)
    assert len(splits.train) + len(splits.test) == 400
    assert 20 <= len(splits.test) <= 60
    train, test = ({image.tobytes() for image in s.images.numpy()} for s in (splits.train, splits.test))
    assert not train & test and train | test == {image.tobytes() for image in pixels}
    for split in (splits.train, splits.test):
        for image, label in zip(split.images.numpy(), split.labels.tolist(), strict=True):
            index = (pixels == image).all((1, 2, 3)).argmax()
            assert label == 1 if index >= 200 else label in (0, 2)


def test_class_folders_that_cannot_be_used(tmp_path, monkeypatch):
    pixels = random_pixels(2, 3, 8, 8)
    write_class(tmp_path / "train" / "apple", pixels)
    for position, split in ((0.05, "training"), (0.5, "test")):
        monkeypatch.setattr(class_folders, "_position", lambda content, position=position: position)
        fails(tmp_path, f"{split} split", "empty")
    write_class(tmp_path / "test" / "boat", pixels)
    fails(tmp_path, tmp_path / "test" / "boat", "training image")
    write_class(tmp_path / "train" / "boat", pixels)
    damaged = tmp_path / "train" / "boat" / "0001.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    fails(tmp_path, damaged)
    write_class(tmp_path / "train" / "boat", pixels)
    load_image_splits("x/y", tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    fails(tmp_path, tmp_path / "train" / "cat", "no image")


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_small_class_has_an_image_on_each_side(tmp_path, n):
    pixels = random_pixels(8 * n, 3, 8, 8)
    for k in range(8):
        write_class(tmp_path / f"class{k}", pixels[k * n : (k + 1) * n])
    splits = load_image_splits("x/y", tmp_path, image_size=8)
    require_trainable(splits, n_parts=1)
    assert len(splits.test) <= len(splits.train)
