import subprocess
from pathlib import Path

import forked_runs
import pytest
import torch

from data.images.drawn_digits import drawn_digits
from data.images.labelled import ImageSplits
from tools.classify import Classifier
from train_cifar import Config, build_model
from training import judge
from training.errors import UsageError
from training.finished_run import open_run
from training.judge import Judge, label_hits, train_judge

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run on drawn digits."""
    folder = tmp_path_factory.mktemp("judge") / "run"
    forked_runs.run(
        "train_cifar.py",
        "demo",
        "--dataset",
        "digits",
        "--model",
        "ultimus",
        "--optimizer",
        "adamw",
        "--lr",
        "0.01",
        "--bias_lr_factor",
        "1",
        "--head_lr_factor",
        "1",
        "--max_train_steps",
        "40",
        "--tracker",
        "none",
        "--output_dir",
        folder,
        check=True,
    )
    return folder


def open_judge(run: Path, class_names: tuple[str, ...] = NAMES) -> Judge:
    return Judge(open_run(run, "cifar", Config), build_model, class_names, CPU)


def splits_of(n_train: int, channels: int = 3) -> ImageSplits:
    """Training images of one pixel, enough to count them."""
    pixels, labels = torch.zeros(n_train, channels, 1, 1, dtype=torch.uint8), torch.zeros(n_train, dtype=torch.long)
    return ImageSplits.of(pixels, labels, pixels, labels, NAMES)


def test_it_labels_pictures_as_the_classifier_does_and_follows_their_size(run):
    _, _, images, _, _ = drawn_digits(n_train=1, n_test=200)
    judged = open_judge(run)
    labels = judged(images.float() / 255, batch_size=64)
    assert torch.equal(labels, Classifier(run, CPU).probabilities(images.expand(-1, 3, -1, -1)).argmax(1))
    doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float((judged(doubled.float() / 255) == labels).float().mean()) > 0.6  # a tenth by chance


def test_a_judge_of_other_classes_is_refused(run):
    with pytest.raises(UsageError, match="--judge"):
        open_judge(run, ("cat", "dog"))


def test_a_judge_is_trained_once_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        short = ["--speednet_widths", "4", "8", "8", "--max_train_steps", "2", "--views", "one"]
        return genuine([*command, *short], **kwargs)

    genuine = subprocess.run
    monkeypatch.setattr(judge.subprocess, "run", run)
    monkeypatch.setenv("RANK", "1")  # of the launch that asks for it: the judge trains alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    splits = ImageSplits.of(*drawn_digits(50, 20))
    first = train_judge(splits, "digits", "", 1)
    again = train_judge(splits, "digits", "", 1)
    assert len(commands) == 1 and "none" in commands[0]  # no flips: the images are grey
    assert first == again and open_judge(first)(splits.test.images / 255).shape == (20,)
    assert len(list((tmp_path / "judges").iterdir())) == 1


@pytest.mark.parametrize(
    ("n_images", "batch_size", "epochs"), [(50_000, None, 10), (49_999, 999, 10), (6_000, 120, 10), (100, 32, 63)]
)
def test_small_data_gets_small_batches_and_rates_that_suit_them(
    monkeypatch, tmp_path, n_images, batch_size, epochs
):
    """The rates of the speed run are for 2000 images an update; on digits they ended at chance."""
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        Path(command[command.index("--output_dir") + 1]).mkdir()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(judge.subprocess, "run", run)
    train_judge(splits_of(n_images), "uoft-cs/cifar10", "", 10)
    (command,) = commands
    assert command[command.index("--epochs") + 1] == str(epochs)
    given = {flag: command[command.index(flag) + 1] for flag in ("--batch_size", "--optimizer") if flag in command}
    assert given == ({} if batch_size is None else {"--batch_size": str(batch_size), "--optimizer": "adamw"})


def test_images_that_are_held_out_count_as_those_that_the_judge_is_trained_on(monkeypatch, tmp_path):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    commands = []
    monkeypatch.setattr(judge, "_put_in_place", lambda trained, run: None)
    monkeypatch.setattr(
        judge.subprocess,
        "run",
        lambda command, **options: commands.append(command) or subprocess.CompletedProcess(command, 0),
    )
    images, labels, *rest = drawn_digits(500, 20)
    splits = ImageSplits.of(images, labels, *rest)
    for fraction in (0.0, 0.5):
        train_judge(splits.with_validation(fraction), "digits", "", 50)
    sizes = [command[command.index("--batch_size") + 1] for command in commands]
    assert sizes == ["50", "50"]


def test_a_training_that_fails_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"nowhere.*--judge"):
        train_judge(splits_of(50_000), "uoft-cs/cifar10", str(tmp_path / "nowhere"), 10)


def finish_run(folder: Path, text: str) -> None:
    """What a finished run of that text looks like to the cache."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "summary.json").write_text(text)


@pytest.mark.parametrize("there", ["nothing", "unfinished", "finished by another machine"])
def test_a_judge_is_trained_aside_and_put_in_place_whole(monkeypatch, tmp_path, there):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    monkeypatch.setattr(judge, "latest_checkpoint", lambda run: run / "checkpoints")
    places = []

    def run(command, **kwargs):
        trained = Path(command[command.index("--output_dir") + 1])
        place = trained.parent.with_suffix("")
        places.append(place)
        assert not judge._is_finished(place)  # others who look meanwhile find none
        if there == "unfinished":
            (place / "checkpoints").mkdir(parents=True)
        elif there != "nothing":
            finish_run(place, "theirs")
        finish_run(trained, "ours")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(judge.subprocess, "run", run)
    found = train_judge(splits_of(50_000), "uoft-cs/cifar10", "", 10)
    assert [found] == places
    assert (found / "summary.json").read_text() == ("theirs" if there.startswith("finished") else "ours")
    assert list((tmp_path / "judges").iterdir()) == [found]  # nothing stays aside
    train_judge(splits_of(50_000), "uoft-cs/cifar10", "", 10)
    assert len(places) == 1


def test_hits_are_counted_against_the_label_that_was_asked_for(fresh_accelerate):
    """With a model that draws its label as a grey level, and a judge that reads it."""
    from accelerate import Accelerator

    class Drawing(torch.nn.Module):
        n_classes, n_noise, latent_dim = 10, 1, 1

        def reconstruct(self, images, labels, decoder_labels, noise, kept_levels):
            return levels(decoder_labels.where(decoder_labels != 3, 0))  # never a 3

        def sample(self, labels, noise, temperature):
            return levels(labels)

    class Grey(torch.nn.Module):
        def mean(self, parameters):
            return parameters

    class Model(torch.nn.Module):
        cvae, likelihood, picture_temperature = Drawing(), Grey(), 1.0

    def levels(labels):
        return (labels / 10)[:, None, None, None].expand(-1, 1, 4, 4)

    labels = torch.arange(100) % 10
    images = (levels(labels) * 255).round().to(torch.uint8)
    images[:7] = 0  # seven real images, of 0 to 6, look like a 0
    read = lambda pictures: (10 * pictures[:, 0, 0, 0]).round().long()  # noqa: E731
    hits = label_hits(Accelerator(cpu=True), Model(), read, images, images.float() / 255, labels, seed=0)
    assert hits["classifier_accuracy"] == pytest.approx(0.94)
    assert hits["prior_hits"] == 1.0
    assert 0.8 <= hits["wrong_label_hits"] < 1.0  # about a tenth were asked to be a 3


def test_where_the_cache_cannot_be_written_the_judge_goes_to_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("data.cache.tempfile.gettempdir", lambda: str(tmp_path))
    commands = []

    def run(command, **options):
        commands.append(command)
        Path(command[command.index("--output_dir") + 1]).mkdir()
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(judge.subprocess, "run", run)
    folder = train_judge(splits_of(100, channels=1), "digits", "", 1)
    assert tmp_path in folder.parents and tmp_path / "file" not in folder.parents
    assert str(folder) in commands[0][commands[0].index("--output_dir") + 1]
