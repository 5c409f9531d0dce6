import json
import shutil
from pathlib import Path

import forked_runs
import numpy as np
import pytest
from mask_sets import write_mask, write_picture
from PIL import Image

from data.images.drawn_shapes import drawn_shapes
from tools.evaluate import evaluate_run, main
from tools.evaluation.request import Request
from training.errors import UsageError

pytestmark = pytest.mark.training

CIFAR = (
    "--model",
    "ultimus",
    "--optimizer",
    "adamw",
    "--lr",
    "0.01",
    "--max_train_steps",
    "12",
    "--batch_size",
    "20",
)
CVAE = ("--channels", "3", "--image_size", "32", "--likelihood", "gaussian", "--width", "16", "--latent_dim", "4")
UNET = ("--image_size", "16", "--width", "8", "--depth", "1", "--max_train_steps", "10", "--batch_size", "4")
TRANSLATION = ("--d_model", "32", "--n_heads", "2", "--n_encoder_layers", "1", "--n_decoder_layers", "1")


def train(script: str, output_dir: Path, *flags: object) -> Path:
    forked_runs.run(script, "demo", "--tracker", "none", "--output_dir", output_dir, *flags, check=True)
    return output_dir


def write_shapes(folder: Path) -> None:
    """train/CLASS/*.png and test/CLASS/*.png of three shapes."""
    train_images, train_labels, test_images, test_labels, names = drawn_shapes()
    for split, images, labels, n in (
        ("train", train_images, train_labels, 60),
        ("test", test_images, test_labels, 30),
    ):
        for i in (labels < 3).nonzero()[:n, 0].tolist():
            path = folder / split / names[labels[i]] / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """The folder of a small data set, of which the runs below are; then its test split alone is left."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_shapes(folder / "shapes")
    data = ("--data_dir", folder / "shapes")
    train("train_cifar.py", folder / "cifar", *data, *CIFAR)
    flags = ("--max_train_steps", "3", "--iw_samples", "2", "--judge", folder / "cifar", "--evaluate_every", "0")
    train("train_cvae.py", folder / "cvae", *data, *CVAE, *flags)
    shutil.rmtree(folder / "shapes" / "train")
    return folder


def assert_as_in_the_test_of_the_run(folder: Path, run: Path, *but: str) -> dict:
    """All that the run's summary says of its test is in the evaluation, to the last digit."""
    found = json.loads((folder / "evaluation.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    expected = {name: value for name, value in summary.items() if name.startswith("test/") and name not in but}
    assert len(expected) >= 3 and expected.items() <= found.items()
    assert list((folder / "figures").glob("*.png"))
    return found


@pytest.mark.parametrize("kind", ["cifar", "cvae"])
def test_images_are_scored_as_in_the_test_of_the_run(shapes, kind, fresh_accelerate, capsys):
    folder = evaluate_run(str(shapes / kind), Request(data_dir=str(shapes / "shapes")))
    assert folder == shapes / kind / "evaluations" / "shapes"
    found = assert_as_in_the_test_of_the_run(folder, shapes / kind)
    assert found["data"] == [str(shapes / "shapes")] and found["test/n_images"] == 30
    assert "on 30 images" in capsys.readouterr().out


def test_images_of_fewer_classes_in_another_order_are_known_by_their_names(shapes, tmp_path, fresh_accelerate):
    """The classes that are left have other numbers in the folder than in the run."""
    first, *others = sorted(path.name for path in (shapes / "shapes" / "test").iterdir())
    whole = json.loads((shapes / "cifar" / "evaluations" / "shapes" / "evaluation.json").read_text())
    scores = {}
    for part in ((first,), others):
        data = tmp_path / "-".join(part)
        for name in part:
            shutil.copytree(shapes / "shapes" / "test" / name, data / "test" / name)
        folder = evaluate_run(str(shapes / "cifar"), Request(data_dir=str(data)), str(tmp_path / "out" / data.name))
        found = json.loads((folder / "evaluation.json").read_text())
        scores[part[0]] = found["test/accuracy"] * found["test/n_images"]
        fresh_accelerate()
    assert sum(scores.values()) == pytest.approx(whole["test/accuracy"] * whole["test/n_images"])


def test_what_cannot_be_evaluated_is_one_line_and_exit_code_2(shapes, tmp_path, capsys, fresh_accelerate):
    write_picture(tmp_path / "other" / "test" / "dog" / "a.png")
    (tmp_path / "empty").mkdir()
    run = str(shapes / "cifar")
    for flags, named in (
        ({}, "--data_dir"),
        ({"test_files": ("a", "b")}, "--test_files means nothing for a run of train_cifar.py"),
        ({"data_dir": str(tmp_path / "other")}, "has images of dog, but the run tells apart"),
        ({"data_dir": str(tmp_path / "empty")}, "holds none of the layouts"),
        ({"data_dir": str(tmp_path / "gone")}, "is not a folder"),
    ):
        with pytest.raises(SystemExit) as end:
            main(run, **flags, output_dir=str(tmp_path / "out"))
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error:") and named in line
        assert not (tmp_path / "out").exists()
        fresh_accelerate()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.json").write_text(json.dumps({"data": ["/elsewhere"]}))
    with pytest.raises(UsageError, match="holds the evaluation of /elsewhere"):
        evaluate_run(run, Request(data_dir=str(shapes / "shapes")), str(tmp_path / "out"))


def write_pets(root: Path) -> None:
    """Pet's own layout: pictures with trimaps, six to train on and three for the test."""
    for i in range(9):
        write_picture(root / "images" / f"pet_{i}.jpg", i)
        write_mask(root / "annotations" / "trimaps" / f"pet_{i}.png", (1, 2, 3), i)
    for name, numbers in (("trainval", range(6)), ("test", range(6, 9))):
        lines = "".join(f"pet_{i} 1 1 1\n" for i in numbers)
        (root / "annotations" / f"{name}.txt").write_text(lines)


def test_pets_are_scored_by_their_test_list_alone_and_own_masks_by_the_values_of_segment(
    tmp_path, fresh_accelerate
):
    write_pets(tmp_path / "pets")
    data = tmp_path / "pets"
    run = train("train_unet.py", tmp_path / "run", "--data_dir", data, *UNET, "--dataset", "pet")
    (data / "annotations" / "trainval.txt").unlink()
    folder = evaluate_run(str(run), Request(data_dir=str(data)))
    found = assert_as_in_the_test_of_the_run(folder, run)
    fresh_accelerate()
    for i in range(6, 9):  # the same pictures as one's own, with masks as tools.segment writes them
        (tmp_path / "own" / "test" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / "test" / "masks").mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "images" / f"pet_{i}.jpg", tmp_path / "own" / "test" / "images")
        with Image.open(data / "annotations" / "trimaps" / f"pet_{i}.png") as trimap:
            is_pet = np.asarray(trimap) != 2
        Image.fromarray(255 * is_pet.astype(np.uint8)).save(tmp_path / "own" / "test" / "masks" / f"pet_{i}.png")
    folder = evaluate_run(str(run), Request(data_dir=str(tmp_path / "own")))
    own = json.loads((folder / "evaluation.json").read_text())
    assert {name: own[name] for name in own if name.startswith("test/")} == {
        name: found[name] for name in found if name.startswith("test/")
    }


def test_sentences_are_translated_as_in_the_test_of_the_run(tmp_path, fresh_accelerate):
    """A table serves as well as two files; text is read as the run read its own."""
    lines = [f"{i} {i * 7 % 100} {i * 3 % 10}" for i in range(260)]
    (tmp_path / "train").write_text("".join(f"{line}\n" for line in lines[:200]))
    (tmp_path / "news.en").write_text("".join(f" {line}  x\n" for line in lines[200:]))
    (tmp_path / "news.tsv").write_text("".join(f"{line}  x\t{line} x\n" for line in lines[200:]))
    files = ("--train_files", tmp_path / "train", tmp_path / "train")
    test_files = ("--test_files", tmp_path / "news.en", tmp_path / "news.en")
    flags = ("--d_ff", "32", "--max_train_steps", "100", "--max_tokens", "512", "--beam_size", "3")
    run = train("train_translation.py", tmp_path / "run", *files, *test_files, *TRANSLATION, *flags)
    (tmp_path / "train").unlink()
    folder = evaluate_run(str(run), Request(test_files=(str(tmp_path / "news.tsv"),)))
    assert folder == run / "evaluations" / "news"
    of_training = ("test/near_duplicates", "test/bleu_without_near_duplicates", "test/n_sentences_in_split")
    assert_as_in_the_test_of_the_run(folder, run, *of_training)
    for kind in ("src", "hyp", "ref"):
        expected = (run / "translations" / f"test.{kind}.txt").read_text()
        assert (folder / "translations" / f"test.{kind}.txt").read_text() == expected
