import io
import json
import shutil
from pathlib import Path

import forked_runs
import numpy as np
import pytest
import torch
from mask_sets import load, write_mask
from PIL import Image
from run_folders import edit_config

from data.images.mask_classes import write_class_table
from data.images.masked import masks_from_trimaps
from data.images.textured_shapes import textured_shapes
from models.segmentation_scores import dice_of_images, pixel_confusion
from tools.segment import Segmenter, main
from training.errors import UsageError

pytestmark = pytest.mark.training


def train(output_dir: Path, script: str, *flags: str) -> Path:
    forked_runs.run(script, "demo", "--tracker", "none", "--output_dir", output_dir, *flags, check=True)
    return output_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run on textured shapes."""
    flags = ("--width", "8", "--depth", "2", "--max_train_steps", "30", "--evaluate_every", "0")
    return train(tmp_path_factory.mktemp("segment") / "run", "train_unet.py", *flags)


def save(images: torch.Tensor, folder: Path) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def test_it_repeats_the_test_dice_of_the_run(run, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    _, test = textured_shapes()
    segmenter = Segmenter(run)
    assert segmenter.class_names == ["background", "pet"]
    predicted = segmenter.masks(test.images, (64, 64))
    counts = pixel_confusion(predicted, masks_from_trimaps(test.trimaps, "binary", "pet"), 2)
    assert float(dice_of_images(counts).mean()) == pytest.approx(summary["test/dice_per_image"], abs=1e-3)
    for (pixels, mask), image, expected in zip(
        segmenter(save(test.images[:3], tmp_path)), test.images, predicted, strict=False
    ):
        assert torch.equal(pixels, image) and torch.equal(mask, expected)


def test_over_views_it_repeats_the_test_dice_over_views(run):
    summary = json.loads((run / "summary.json").read_text())
    _, test = textured_shapes()
    predicted = Segmenter(run).masks(test.images, (64, 64), views=summary["views"])
    counts = pixel_confusion(predicted, masks_from_trimaps(test.trimaps, "binary", "pet"), 2).sum(0)
    dice = 2 * counts[1, 1] / (counts[1].sum() + counts[:, 1].sum())
    assert float(dice) == pytest.approx(summary["test/dice_views"], abs=1e-3)
    assert summary["test/dice_views"] != summary["test/dice"]


def test_without_a_word_on_views_they_are_the_run_s(run, tmp_path):
    _, test = textured_shapes()
    paths = save(test.images[:4], tmp_path)
    main(str(run), tuple(map(str, paths)), str(tmp_path / "out"))
    segmenter = Segmenter(run)
    for path, (_, mask) in zip(paths, segmenter(paths, segmenter.config.views), strict=True):
        with Image.open(tmp_path / "out" / f"{path.stem}_mask.png") as written:
            assert torch.equal(torch.tensor(np.asarray(written)) > 0, mask > 0)
    assert segmenter.config.views == "scales"


def test_a_run_of_before_a_flag_was_renamed_is_read(run, tmp_path):
    shutil.copytree(run, tmp_path / "old")
    (checkpoint,) = (tmp_path / "old" / "checkpoints").iterdir()

    def as_it_was(config: dict) -> None:
        del config["valid_fraction"], config["evaluate_every"]
        config["evaluate_every"] = 10

    edit_config(checkpoint, as_it_was)
    _, test = textured_shapes()
    expected = Segmenter(run).masks(test.images[:4], (64, 64))
    assert torch.equal(Segmenter(tmp_path / "old").masks(test.images[:4], (64, 64)), expected)


def test_masks_and_overlays_have_the_size_of_their_picture(run, tmp_path):
    _, test = textured_shapes()
    picture = Image.fromarray(test.images[0].permute(1, 2, 0).numpy())
    sizes = {"wide": (131, 97), "small": (20, 33), "same": (64, 64)}
    for name, size in sizes.items():
        picture.resize(size).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{name}.png") for name in sizes]
    done = forked_runs.run("-m", "tools.segment", run, *files, "--output_dir", tmp_path / "out", check=True)
    lines = done.stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == files
    for (name, size), line in zip(sizes.items(), lines, strict=True):
        with Image.open(tmp_path / "out" / f"{name}_mask.png") as mask:
            assert mask.size == size and mask.mode == "L"
            values = np.asarray(mask)
        assert set(np.unique(values)) <= {0, 255}
        assert line.split("\t")[2] == f"pet {(values == 255).mean():.1%}"
        with Image.open(tmp_path / "out" / f"{name}_overlay.png") as overlay:
            assert overlay.size == size and overlay.mode == "RGB"


def test_a_larger_copy_of_a_picture_gets_a_larger_copy_of_its_mask(run):
    _, test = textured_shapes()
    segmenter = Segmenter(run)
    small, large = segmenter.masks(test.images[:8], (64, 64)), segmenter.masks(test.images[:8], (128, 128))
    enlarged = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert float((large == enlarged).float().mean()) > 0.85  # short training: ragged edges


COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


@pytest.mark.parametrize(
    ("values", "mode"), [((0, 255), "L"), ((0, 1, 2, 3), "P"), ((0, 85, 170, 255), "L"), (COLOURS, "RGB")]
)
def test_what_it_writes_can_be_trained_on(tmp_path, monkeypatch, values, mode):
    """The masks of a run on own pictures, read again with their pictures, are the run's predictions and classes."""
    for i in range(12):  # pictures that show their masks
        shades = np.arange(len(values)) * 60
        write_mask(tmp_path / f"own/images/a{i}.png", np.stack([shades] * 3, -1), i)
        write_mask(tmp_path / f"own/masks/a{i}.png", values, i)
    names = ["ground", "cell, dead", "cell", "rim"][: len(values)]
    write_class_table(tmp_path / "own" / "classes.csv", names, values)
    flags = (
        "--data_dir",
        str(tmp_path / "own"),
        "--image_size",
        "16",
        "--width",
        "8",
        "--depth",
        "1",
        "--max_train_steps",
        "30",
        "--evaluate_every",
        "0",
        "--batch_size",
        "4",
    )
    run = train(tmp_path / "run", "train_unet.py", *flags)
    again = tmp_path / "again"
    pictures = sorted((tmp_path / "own" / "images").iterdir())
    main(str(run), tuple(map(str, pictures)), str(again / "masks"))
    (tmp_path / "own" / "images").rename(again / "images")
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))
    splits = load(again, image_size=120)
    assert splits.class_names == tuple(names) and splits.mask_values == values
    with Image.open(again / "masks" / "a1_mask.png") as mask:
        assert mask.mode == mode
    segmenter = Segmenter(run)
    paths = [again / f"{name}.png" for name in splits.train.names]
    occurring = set()
    for mask, (_, predicted) in zip(splits.train.masks, segmenter(paths, segmenter.config.views), strict=True):
        enlarged = predicted.repeat_interleave(5, 0).repeat_interleave(4, 1)
        assert torch.equal(mask, enlarged)
        occurring |= set(mask.unique().tolist())
    assert len(occurring) > 1


def test_a_class_table_of_its_own_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "classes.csv").write_text("background,0\ncell,1\n")
    with pytest.raises(SystemExit) as end:
        main(str(run), (str(tmp_path / "x.png"),), str(tmp_path))
    assert end.value.code == 2 and "classes.csv lists other classes" in capsys.readouterr().err
    assert (tmp_path / "classes.csv").read_text() == "background,0\ncell,1\n"


def test_what_cannot_be_read_is_one_line_and_exit_code_2(run, tmp_path, capsys):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:50])
    for run_dir, files, named in (
        (run, [tmp_path / "cut.png"], "cut.png"),
        (run, [tmp_path / "absent.png"], "absent.png"),
        (tmp_path, ["x.png"], str(tmp_path)),
        (run, ["a/x.png", "b/x.png"], "called x"),
    ):
        with pytest.raises(SystemExit) as end:
            main(str(run_dir), tuple(map(str, files)), str(tmp_path / "out"))
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error:") and named in line


def test_the_run_of_another_script_is_refused(tmp_path):
    flags = ("--model", "ultimus", "--optimizer", "adamw", "--lr", "0.01", "--max_train_steps", "1")
    other = train(tmp_path / "other", "train_cifar.py", *flags)
    with pytest.raises(UsageError, match="not of train_unet"):
        Segmenter(other)
