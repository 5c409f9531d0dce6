import io
import json
import shutil
from pathlib import Path

import forked_runs
import pytest
import torch
from PIL import Image

from data.images.drawn_shapes import drawn_shapes
from tools.classify import Classifier
from training.errors import UsageError

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run on drawn shapes."""
    output_dir = tmp_path_factory.mktemp("classify") / "run"
    forked_runs.run(
        "train_cifar.py",
        "demo",
        "--model",
        "ultimus",
        "--optimizer",
        "adamw",
        "--lr",
        "0.01",
        "--tracker",
        "none",
        "--max_train_steps",
        "30",
        "--views",
        "six",
        "--output_dir",
        output_dir,
        check=True,
    )
    return output_dir


def test_it_repeats_the_test_accuracies_of_the_run(run):
    summary = json.loads((run / "summary.json").read_text())
    _, _, images, labels, names = drawn_shapes()
    classifier = Classifier(run)
    assert tuple(classifier.class_names) == names
    for views, key in (("one", "test/accuracy"), ("six", "test/accuracy_views")):
        predicted = classifier.probabilities(images, views).argmax(1)
        assert float((predicted == labels).float().mean()) == pytest.approx(summary[key], abs=0.002)


def test_files_get_the_labels_of_their_pictures(run, tmp_path):
    _, _, images, _, names = drawn_shapes()
    paths = []
    for i, image in enumerate(images[:5]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    classifier = Classifier(run)
    expected = classifier.probabilities(images[:5]).topk(2)
    found = list(classifier(paths, top_k=2, batch_size=2))
    assert [[name for name, _ in classes] for classes in found] == [
        [names[k] for k in row] for row in expected.indices.tolist()
    ]
    torch.testing.assert_close(torch.tensor([[share for _, share in c] for c in found]), expected.values)

    done = forked_runs.run("-m", "tools.classify", run, *paths[:2], "--views", "one", check=True)
    lines = done.stdout.splitlines()
    assert lines == [f"{path}\t{c[0][0]}\t{c[0][1]:.4f}" for path, c in zip(paths, found[:2], strict=False)]


def test_what_cannot_be_read_is_one_line_and_exit_code_2(run, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:50])
    for arguments, named in (
        ([run, tmp_path / "cut.png"], "cut.png"),
        ([run, tmp_path / "absent.png"], "absent.png"),
        ([tmp_path, "x.png"], str(tmp_path)),
    ):
        done = forked_runs.run("-m", "tools.classify", *arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error:") and named in line


def test_the_run_of_another_script_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    for checkpoint in (tmp_path / "other" / "checkpoints").iterdir():
        (checkpoint / "data.json").unlink()
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        del manifest["data.json"]
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="not of train_cifar"):
        Classifier(tmp_path / "other")
