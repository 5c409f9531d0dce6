import importlib.util
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from offline_runs import OfflineRun
from PIL import Image, PngImagePlugin

from training.errors import UsageError
from training.run import Run, open_accelerator
from training.tracking import require_tracker, title_of_png


@dataclass(frozen=True)
class Config:
    output_dir: str
    recipe: str = "demo"
    tracker: str = "wandb"
    eval_only: bool = False
    widths: tuple[int, ...] = (8, 16)
    flip: bool = True
    data_dir: str = ""


def open_run(path: Path, state: dict | None = None, **options) -> Run:
    checkpoint = path / "checkpoints" / f"checkpoint-{state['step']}" if state else None
    return Run(open_accelerator(), "cifar", Config(str(path), **options), checkpoint, state)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    title = PngImagePlugin.PngInfo()
    title.add_text("Title", "The worst mistakes")
    Image.new("RGB", (4, 4)).save(path, pnginfo=title)
    return path


def log_everything(run: Run, step: int) -> None:
    run.log({"train/loss": 2.0 / step}, step, 0.5)
    run.log_figures([picture(run.figures_dir / "mistakes.png")], step)
    run.log_samples("valid", ["eins", "zwei"], ["one", "two"], ["one", "<script>"], step)


def finish(run: Run) -> None:
    run.finish({"test/accuracy": 0.5, "best/valid/accuracy": 0.75}, 1.0, torch.nn.Linear(2, 2))


# --- W&B


CALLS = [
    ("wandb", "login"),
    ("wandb", "init"),
    ("wandb.Image", "__init__"),
    ("wandb.Table", "__init__"),
    ("wandb.Run", "define_metric"),
    ("wandb.Run", "save"),
    ("wandb.Run", "log"),
    ("wandb.Run", "finish"),
    ("wandb.sdk.wandb_summary.Summary", "update"),
    ("accelerate.tracking.WandBTracker", "start"),
]


@pytest.mark.parametrize(("owner", "call"), CALLS, ids=[".".join(call) for call in CALLS])
def test_a_call_of_wandb_that_fails_turns_it_off_and_never_ends_the_run(
    fresh_accelerate, tmp_path, monkeypatch, capsys, owner, call
):
    def fail(*args, **options):
        raise RuntimeError("no space left")

    with monkeypatch.context() as patch:
        if call == "login":
            patch.delenv("WANDB_MODE")
        patch.setattr(f"{owner}.{call}", fail)
        run = open_run(tmp_path / "run")
        for step in (1, 2):
            log_everything(run, step)
        finish(run)
    errors = capsys.readouterr().err
    assert errors.count("warning: W&B failed and is off for this run: RuntimeError('no space left')") == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test/accuracy"] == 0.5


def test_after_a_run_whose_tracker_failed_the_next_is_another(fresh_accelerate, tmp_path, monkeypatch):
    run = open_run(tmp_path / "a")

    def fail(*args, **options):
        raise RuntimeError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(run.tracking.backend.run, "log", fail)
        run.log({"x": 1.0}, 1, 0)
    finish(run)
    following = open_run(tmp_path / "b")  # as the variants of `all` are
    assert following.tracking.id != run.tracking.id
    assert Path(following.tracking.backend.run.dir).is_relative_to(tmp_path / "b")
    finish(following)


def test_the_summary_has_the_best_of_validation_and_of_the_test_what_summary_json_has(
    fresh_accelerate, tmp_path, monkeypatch
):
    run = open_run(tmp_path / "run")
    wandb_run = run.tracking.backend.run
    for step, value in ((1, 0.5), (2, 0.9), (3, 0.8)):
        names = ("valid/bleu", "valid/dice", "valid/nll", "valid/loss", "test/dice", "test/loss", "test_extra/bleu")
        run.log({name: value for name in names}, step, 0)
    tracked = wandb_run.summary
    for name in ("test/dice", "test/loss", "test_extra/bleu"):  # the last, of which no best is chosen
        assert tracked[name] == 0.8, name  # also of a run that is killed now
    assert tracked["valid/bleu"]["max"] == tracked["valid/dice"]["max"] == 0.9
    assert tracked["valid/nll"]["min"] == tracked["valid/loss"]["min"] == 0.5
    at_the_end = {}
    with monkeypatch.context() as patch:
        patch.setattr(wandb_run, "finish", lambda exit_code: at_the_end.update(dict(tracked)))
        run.finish({"test/dice": 0.8, "test/dice_views": 0.85}, 1.0, torch.nn.Linear(2, 2))
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    versions = written.pop("versions")
    written |= {f"versions/{name}": version for name, version in versions.items()}
    assert {name: at_the_end[name] for name in written} == written
    wandb_run.finish()


@pytest.fixture
def secret_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz")
    monkeypatch.setattr("sys.argv", ["train_cifar.py", "demo", "--data_dir", "https://me:pass1234@host.org/x"])
    return b"0123456789abcdef", b"AbCdEfGhIjKl", b"pass1234"


def test_an_offline_run_and_its_resume_are_one_run_with_all_that_belongs_to_it_and_no_secret(
    fresh_accelerate, tmp_path, monkeypatch, capsys, secret_environment
):
    monkeypatch.chdir(tmp_path)
    data_dir = "https://me:pass1234@host.org/x"
    run = open_run(tmp_path / "run", data_dir=data_dir)
    log_everything(run, 1)
    state = json.loads(json.dumps({"step": 1, **run.state()}))
    run.tracking.finish(exit_code=143)  # as after a signal
    resumed = open_run(tmp_path / "run", state, data_dir=data_dir)
    log_everything(resumed, 2)
    finish(resumed)
    *_, line = [line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line]
    command = shlex.split(line.partition("`")[2].rstrip("`"))
    pieces = sorted(Path("run/wandb").glob("offline-run-*"))
    assert command == ["wandb", "sync", *map(str, pieces)] and len(pieces) == 2

    first, second = [OfflineRun(piece) for piece in pieces]
    assert first.run.run_id == second.run.run_id
    assert [row["step"] for row in first.history + second.history] == [1, 1, 1, 2, 2, 2]
    assert second.config["widths"] == "8 16" and second.config["flip"] is True
    assert second.config["script"] == "cifar" and second.config["num_processes"] == 1
    ours = {name: value for name, value in second.config.items() if name != "_wandb"}
    assert not [name for name, value in ours.items() if isinstance(value, dict | list)]
    assert second.summary["best/valid/accuracy"] == 0.75
    assert second.summary["versions/torch"] == torch.__version__
    assert "***" in second.summary["command"]
    assert {"code/train_cifar.py", "code/training/loop.py", "code/models/unet.py"} <= second.files
    assert all((pieces[1] / "files" / name).exists() for name in ("requirements.txt", *second.files))
    (table,) = [row["samples/valid"] for row in second.history if "samples/valid" in row]
    assert table["nrows"] == 2 and table["ncols"] == 3
    (image,) = [row["figures/mistakes"] for row in second.history if "figures/mistakes" in row]
    assert image["caption"] == "The worst mistakes"
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert not [secret for secret in secret_environment if secret in path.read_bytes()], path


def test_a_resume_from_another_folder_uploads_the_piece_that_lies_there(fresh_accelerate, tmp_path, capsys):
    run = open_run(tmp_path / "first")
    state = {"step": 1, **run.state()}
    run.tracking.finish()
    checkpoint = tmp_path / "first" / "checkpoints" / "checkpoint-1"
    other = Run(open_accelerator(), "cifar", Config(str(tmp_path / "second")), checkpoint, state)
    other.tracking.finish()
    *_, line = [line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line]
    assert line.index("first/wandb/offline-run-") < line.index("second/wandb/offline-run-")


# --- the other trackers


def test_tensorboard_has_the_numbers_of_a_run_and_a_resume_forgets_what_it_repeats(
    fresh_accelerate, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("training.run.git_commit", lambda: None)  # as where the code is in no repository
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = open_run(tmp_path / "run", tracker="tensorboard")
    state = {"step": 1, **run.state()}
    for step in (1, 2, 3):
        log_everything(run, step)
    run.tracking.finish()
    resumed = open_run(tmp_path / "run", state, tracker="tensorboard")
    for step in (2, 3, 4):
        resumed.log({"train/loss": 10.0 * step}, step, 0.5)
    finish(resumed)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(1, 2.0), (2, 20.0), (3, 30.0), (4, 40.0)]


@pytest.mark.parametrize("call", ["__init__", "add_hparams", "add_scalar", "add_text", "close"])
def test_a_call_of_tensorboard_that_fails_never_ends_the_run(fresh_accelerate, tmp_path, monkeypatch, capsys, call):
    pytest.importorskip("tensorboard")

    def fail(*args, **options):
        raise RuntimeError("no space left")

    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{call}", fail)
    run = open_run(tmp_path / "run", tracker="tensorboard")
    for step in (1, 2):
        log_everything(run, step)
    finish(run)
    assert capsys.readouterr().err.count("warning: TensorBoard failed and is off for this run: RuntimeError") == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_trackio_has_the_numbers_of_a_run_and_of_its_resume(fresh_accelerate, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage")
    run = open_run(tmp_path / "run", tracker="trackio")
    log_everything(run, 1)
    state = {"step": 1, **run.state()}
    run.tracking.finish()
    resumed = open_run(tmp_path / "run", state, tracker="trackio")
    log_everything(resumed, 2)
    finish(resumed)
    (name,) = [kept.name for kept in trackio.Api().runs("onecycle") if run.tracking.id in kept.name]
    rows = storage.SQLiteStorage.get_logs("onecycle", name)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [(1, 2.0), (2, 1.0)]


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_told_of_before_anything_is_trained(monkeypatch, tracker):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"--tracker {tracker} needs .* pip install {tracker}"):
        require_tracker(tracker)
    require_tracker("wandb")  # then the run goes on without it
    require_tracker("none")


def test_a_png_without_a_title_is_called_by_its_name(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "class_accuracy.png")
    assert title_of_png(tmp_path / "class_accuracy.png") == "class accuracy"
    assert title_of_png(picture(tmp_path / "x.png")) == "The worst mistakes"
