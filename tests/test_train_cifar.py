"""The whole script, end to end, on drawn shapes: what a user relies on."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked_runs
import psutil
import pytest
import torch
from accelerate import Accelerator
from forked_runs import ForkedProcesses
from PIL import Image
from run_folders import Killed, curve, edit_config, final_weights, summary
from safetensors.torch import load_file
from small_data import small_data
from two_processes import on_processes

import train_cifar
from data.images import on_host
from data.images.drawn_shapes import drawn_shapes
from data.images.labelled import LabelledImages
from train_cifar import RECIPES, Config, build_model, build_optimizer, check_side, evaluate
from training.checkpoints import list_checkpoints, step_of
from training.cli import run_script
from training.errors import UsageError
from training.run_folder import claim_folder, release_folders

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--model",
    "ultimus",
    "--optimizer",
    "adamw",
    "--lr",
    "0.01",
    "--weight_decay",
    "0",
    "--batch_size",
    "100",
    "--bias_lr_factor",
    "1",
    "--head_lr_factor",
    "1",
    "--max_train_steps",
    "12",
    "--log_every",
    "4",
    "--tracker",
    "none",
)
HARDEST = ("--hard_share", "0.5", "--proxy_widths", "8", "8", "8")
WITH_NORMS = ("--model", "speednet", "--batch_size", "16", "--label_smoothing", "0.2")


@pytest.fixture
def train(fresh_accelerate, blank_figures, monkeypatch):
    """Run the script in this process: train(output_dir, *flags) -> exit code."""

    def run(output_dir, *flags) -> int:
        fresh_accelerate()
        flags = ["demo", *TINY, "--output_dir", str(output_dir), *map(str, flags)]
        monkeypatch.setattr(sys, "argv", ["train_cifar.py", *flags])
        try:
            run_script(train_cifar.main, RECIPES, "", user_errors=(train_cifar.DataError,))
        except SystemExit as end:
            return end.code
        return 0

    return run


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    """A quarter of the demo's pictures, drawn once."""
    drawn = drawn_shapes(n_train=1000, n_test=205)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cifar, "drawn_shapes", lambda: drawn)
        yield


def fork(output_dir, *flags, config: str) -> ForkedProcesses:
    return forked_runs.start("train_cifar.py", "demo", *TINY, "--output_dir", output_dir, *flags, config=config)


def launch(output_dir, *flags, config: str) -> subprocess.Popen:
    """As users do it: for what the launcher has a part in."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        "--config_file",
        f"accelerate_configs/{config}.yaml",
        "train_cifar.py",
        "demo",
        *TINY,
        "--output_dir",
        str(output_dir),
        *map(str, flags),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# --- one run


def test_patience_ends_a_run_that_gets_no_better(train, tmp_path, capsys, monkeypatch):
    always = {"loss": 1.0, "accuracy": 0.5}
    monkeypatch.setattr(train_cifar, "evaluate", lambda *_: (always, torch.full((205, 10), 0.1)))
    assert train(tmp_path, "--max_train_steps", "0", "--epochs", "9", "--patience", "2") == 0
    assert "out of patience" in capsys.readouterr().out
    assert summary(tmp_path)["best/step"] * 3 == step_of(list_checkpoints(tmp_path)[-1])  # the first of 3 epochs


@pytest.mark.figures
@pytest.mark.smoke
def test_a_run_leaves_what_the_contract_says(train, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run) == 0
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    figures = (
        "accuracy",
        "augmentations",
        "class_accuracy",
        "confusion_matrix",
        "data_statistics",
        "loss",
        "lr",
        "misclassified",
        "model_summary",
        "samples",
        "throughput",
    )
    assert found >= {"config.json", "metrics.jsonl", "summary.json", *(f"figures/{name}.png" for name in figures)}
    assert [step_of(path) for path in list_checkpoints(run)][-1] == 12
    values = summary(run)
    assert 0 <= values["test/accuracy"] <= 1 and math.isfinite(values["test/loss"])
    assert 0 <= values["test/accuracy_views"] <= 1 and values["views"] == "mirror"
    assert values["test/n_images"] == 205 and values["n_parameters"] == 25_882
    names = set().union(*curve(run))
    assert {"train/loss", "train/accuracy", "lr", "train/gradient_norm", "test/accuracy", "test/loss"} <= names
    assert {"valid/accuracy", "valid/loss", "valid/n_images"} <= names and values["best/step"] in (10, 12)
    assert f"test accuracy {values['test/accuracy']:.2%} on 205 images" in capsys.readouterr().out


def test_eval_only_gives_the_same_score_and_trains_nothing(train, tmp_path):
    assert train(tmp_path / "run") == 0
    assert train(tmp_path / "evaluated", "--eval_only", "--resume", tmp_path / "run") == 0
    for name in ("test/accuracy", "test/loss", "test/accuracy_views"):
        assert summary(tmp_path / "evaluated")[name] == pytest.approx(summary(tmp_path / "run")[name], rel=1e-6)
    assert not (tmp_path / "evaluated" / "checkpoints").exists()


@pytest.mark.parametrize("narrows", [True, False])
def test_an_average_that_narrows_ends_at_the_last_weights(train, tmp_path, narrows):
    assert train(tmp_path, "--ema_decay", "0.9", *(["--ema_narrows"] if narrows else [])) == 0
    (checkpoint,) = (tmp_path / "checkpoints").glob("checkpoint-12")
    last, averaged = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "ema"))
    assert all(torch.equal(averaged[name], last[name]) for name in last) == narrows


@pytest.mark.long
@pytest.mark.slow
def test_the_demo_as_the_readme_launches_it_learns_the_shapes(tmp_path):
    """Two of its five epochs, which get all right."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command = [*launch, "train_cifar.py", "demo", "--epochs", "2", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["test/accuracy"] >= 0.95
    pictures = {p.name.split("_")[0] for p in (tmp_path / "run").rglob("media/images/figures/*.png")}
    assert {"confusion", "misclassified", "samples", "augmentations", "data", "model"} - pictures <= {
        "misclassified"
    }


# --- validation and the test split


def test_the_test_split_is_read_once_at_the_end_with_the_weights_that_validation_chose(
    train, tmp_path, monkeypatch
):
    genuine, tested = train_cifar.evaluate, []

    def worse_each_time(accelerator, model, split, *rest, **options):
        metrics, probabilities = genuine(accelerator, model, split, *rest, **options)
        if len(split) == 205:
            tested.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            return metrics, probabilities
        assert not tested
        worse_each_time.accuracy -= 0.1
        return {**metrics, "accuracy": worse_each_time.accuracy}, probabilities

    worse_each_time.accuracy = 1.0
    monkeypatch.setattr(train_cifar, "evaluate", worse_each_time)
    assert train(tmp_path, "--max_train_steps", "25", "--views", "one") == 0
    validated = [line["step"] for line in curve(tmp_path) if "valid/accuracy" in line]
    assert validated == [10, 20, 25]
    assert [line["step"] for line in curve(tmp_path) if "test/accuracy" in line] == [25]
    assert len(tested) == 1 and summary(tmp_path)["best/step"] == 10
    chosen = load_file(tmp_path / "checkpoints" / "checkpoint-10" / "model.safetensors")
    assert all(torch.equal(tested[0][name], chosen[name]) for name in chosen)


def test_where_nothing_is_held_out_all_images_train_and_the_last_weights_are_tested(train, tmp_path, capsys):
    flags = ("--valid_fraction", "0", "--max_train_steps", "25", "--checkpoints_total_limit", "0")
    assert train(tmp_path, *flags) == 0
    assert "1,000 training, 0 validation and 205 test images" in capsys.readouterr().out
    assert not [name for line in curve(tmp_path) for name in line if name.startswith("valid/")]
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [10, 20, 25]  # one an epoch, as with one
    assert "best/step" not in summary(tmp_path)


def test_a_signal_during_the_final_test_ends_the_run_at_once(train, tmp_path, monkeypatch):
    genuine = train_cifar.evaluate

    def asked_to_end(accelerator, model, split, *rest, **options):
        if len(split) == 205:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("went on")
        return genuine(accelerator, model, split, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train_cifar, "evaluate", asked_to_end)
        assert train(tmp_path) == 143
    assert not (tmp_path / "summary.json").exists() and list_checkpoints(tmp_path)[-1].name == "checkpoint-12"
    assert train(tmp_path, "--resume", "latest") == 0
    assert summary(tmp_path)["test/n_images"] == 205


def test_a_run_of_before_there_was_a_validation_split_is_resumed_without(train, tmp_path):
    assert train(tmp_path, "--valid_fraction", "0", "--max_train_steps", "4") == 0
    edit_config(tmp_path / "checkpoints" / "checkpoint-4", lambda config: config.pop("valid_fraction"))
    assert train(tmp_path, "--resume", "latest", "--max_train_steps", "8") == 0
    assert json.loads((tmp_path / "config.json").read_text())["valid_fraction"] == 0


# --- the run's folder


@pytest.mark.slow
def test_two_processes_end_together_where_another_run_owns_the_folder(tmp_path):
    claim_folder(tmp_path / "run")
    try:
        process = launch(tmp_path / "run", config="cpu_2proc")
        _, err = process.communicate(timeout=120)
    finally:
        release_folders()
    assert process.returncode != 0
    assert err.count("error: ") == 1 and f"process {os.getpid()} on" in err
    assert "exitcode  : 2" in err and "SIGKILL" not in err  # none waited for the other
    assert not (tmp_path / "run").exists()


def test_all_that_is_wrong_with_the_folder_is_said_before_any_data_is_read(train, tmp_path, monkeypatch, capsys):
    def reads(config):
        raise AssertionError("data were read")

    monkeypatch.setattr(train_cifar, "load_splits", reads)
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file") == 2
    shown = capsys.readouterr().err.splitlines()
    assert "file is a file" in shown[-1] and not any("Traceback" in line for line in shown)


# --- resuming


@pytest.mark.parametrize(
    "flags",
    [
        ("--ema_decay", "0.9", "--crop_padding", "4", "--flip", "random", "--cutout", "8", "--contrast", "0.2"),
        (
            *(*WITH_NORMS, *HARDEST, "--optimizer", "muon", "--lr", "0.2", "--gradient_accumulation_steps", "2"),
            *("--ema_decay", "0.9", "--lookahead", "3"),
        ),
        (*WITH_NORMS, "--optimizer", "sgd", "--lr", "0.1"),
    ],
)
def test_killed_anywhere_and_resumed_equals_uninterrupted_bit_for_bit(train, tmp_path, monkeypatch, flags):
    flags = (*flags, "--checkpointing_steps", "4", "--max_train_steps", "13")
    assert train(tmp_path / "whole", *flags) == 0
    genuine = train_cifar.train_update
    calls = 0

    def killed_at_7_and_11(*args):
        nonlocal calls
        calls += 1
        if calls in (7, 14):  # after 6 updates, and (resumed at 4) after 10
            raise Killed
        return genuine(*args)

    monkeypatch.setattr(train_cifar, "train_update", killed_at_7_and_11)
    for _ in range(2):
        with pytest.raises(Killed):
            train(tmp_path / "killed", *flags, "--resume", "latest")
    assert train(tmp_path / "killed", *flags, "--resume", "latest") == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for name, tensor in final_weights(tmp_path / "whole").items():
        assert torch.equal(tensor, final_weights(tmp_path / "killed")[name]), name


def test_a_resume_takes_the_runs_own_settings_and_names_what_is_given_anew(train, tmp_path, monkeypatch, capsys):
    own = ("--lr", "0.02", "--momentum", "0.8", "--max_train_steps", "4")
    assert train(tmp_path / "run", *own) == 0
    argv = ["train_cifar.py", "demo", "--output_dir", str(tmp_path / "run"), "--resume", "latest"]
    monkeypatch.setattr(sys, "argv", [*argv, "--max_train_steps", "8", "--lr", "0.01", "--tracker", "none"])
    capsys.readouterr()
    run_script(train_cifar.main, RECIPES, "")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resuming")]
    assert [line.partition(": ")[2] for line in said] == [
        "--max_train_steps 8 instead of the run's 4",
        "--lr 0.01 instead of the run's 0.02",
    ]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["lr"], config["momentum"], config["max_train_steps"]) == (0.01, 0.8, 8)
    assert (config["model"], config["batch_size"]) == ("ultimus", 100)  # of TINY, not of the recipe


def test_a_resume_in_the_middle_of_an_epoch_with_another_batch_size(train, tmp_path, monkeypatch, capsys):
    """It is refused; insisted on, the epoch shows each image once, and the epochs are as many as asked for."""
    epochs = ("--epochs", "2", "--max_train_steps", "0", "--evaluate_every", "0", "--valid_fraction", "0")
    assert train(tmp_path / "run", *epochs, "--max_train_steps", "4", "--checkpointing_steps", "4") == 0
    more = (*epochs, "--batch_size", "150", "--resume", "latest", "--log_every", "1")
    assert train(tmp_path / "run", *more) == 2
    assert "middle of an epoch" in capsys.readouterr().err
    genuine, shown = train_cifar.train_update, []

    def noted(*arguments):
        *_, ids, _step, _lr = arguments
        shown.extend(ids.tolist())
        return genuine(*arguments)

    monkeypatch.setattr(train_cifar, "train_update", noted)
    assert train(tmp_path / "run", *more, "--resume_changes") == 0
    assert len(set(shown[:600])) == 600 and sorted(shown[600:]) == list(range(1000))
    assert [line["epoch"] for line in curve(tmp_path / "run")[-2:]] == [pytest.approx(2 - 1 / 7), 2]


def test_a_resume_on_other_data_is_refused(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--max_train_steps", "2") == 0
    shapes = tmp_path / "shapes"
    write_folder(shapes)
    capsys.readouterr()
    assert train(tmp_path / "run", "--data_dir", shapes, "--resume", "latest") == 2
    assert "data.json" in capsys.readouterr().err


def test_a_resume_with_another_optimizer_is_refused(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--max_train_steps", "2", "--optimizer", "muon") == 0
    capsys.readouterr()
    assert train(tmp_path / "run", "--optimizer", "adamw", "--resume", "latest") == 2
    assert "trained with --optimizer muon" in capsys.readouterr().err


# --- equal updates


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_double_batch(train, tmp_path):
    """With batch norm over both processes; augmentation and order are the same for any number of them."""
    flags = (
        *small_data("cifar", tmp_path),
        *WITH_NORMS,
        "--optimizer",
        "sgd",
        "--lr",
        "0.02",
        "--max_train_steps",
        "3",
        "--cutout",
        "4",
        "--brightness",
        "0.2",
        "--flip",
        "random",
        "--batch_size",
    )
    process = fork(tmp_path / "two", "--tracker", "wandb", *flags, 16, config="cpu_2proc")
    assert train(tmp_path / "doubled", *flags, 32) == 0
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    expected = final_weights(tmp_path / "doubled")
    for name, tensor in final_weights(tmp_path / "two").items():
        # Statistics of a few images in late layers amplify the rounding of sums in another order.
        tolerance = 2e-3 if "running" in name else 5e-5
        torch.testing.assert_close(tensor, expected[name], atol=tolerance, rtol=0, msg=name)
    two, doubled = summary(tmp_path / "two"), summary(tmp_path / "doubled")
    assert two["num_processes"] == 2 and two["test/n_images"] == doubled["test/n_images"] == 45
    assert two["test/loss"] == pytest.approx(doubled["test/loss"], abs=1e-3)
    assert len(list((tmp_path / "two").rglob("run-*.wandb"))) == 1  # that of the main process


def test_accumulation_trains_as_the_doubled_batch_where_there_is_no_norm(train, tmp_path):
    flags = ("--optimizer", "sgd", "--lr", "0.1", "--max_grad_norm", "0.5")
    assert train(tmp_path / "accumulated", *flags, "--batch_size", "50", "--gradient_accumulation_steps", "2") == 0
    assert train(tmp_path / "doubled", *flags) == 0
    expected = final_weights(tmp_path / "doubled")
    for name, tensor in final_weights(tmp_path / "accumulated").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_two_processes_train_as_accumulation_and_either_goes_on_where_the_other_stopped(train, tmp_path):
    """To 1e-6, with random augmentation; where there is no norm, whose statistics are of what a pass shows."""
    flags = (
        *small_data("cifar", tmp_path),
        "--cutout",
        "4",
        "--brightness",
        "0.2",
        "--contrast",
        "0.2",
        "--flip",
        "random",
        "--crop_padding",
        "3",
        "--optimizer",
        "sgd",
        "--lr",
        "0.05",
        "--max_grad_norm",
        "0.5",
        "--ema_decay",
        "0.9",
        "--lookahead",
        "3",
        "--batch_size",
        "32",
        "--max_train_steps",
        "8",
        "--checkpointing_steps",
        "4",
        "--checkpoints_total_limit",
        "0",
    )
    of_one = (*flags, "--gradient_accumulation_steps", "2")
    assert train(tmp_path / "one", *of_one) == 0
    processes = [fork(tmp_path / "two", *flags, config="cpu_2proc")]
    # Two processes go on from what one has saved: as many images an update, in other parts.
    half_way = tmp_path / "one" / "checkpoints" / "checkpoint-4"
    goes_on = ("--gradient_accumulation_steps", "1", "--resume", half_way)
    processes.append(fork(tmp_path / "one-two", *flags, *goes_on, config="cpu_2proc"))
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    # And one from what two have saved.
    half_way = tmp_path / "two" / "checkpoints" / "checkpoint-4"
    assert train(tmp_path / "two-one", *of_one, "--resume", half_way) == 0
    expected = final_weights(tmp_path / "one")
    for name in ("two", "one-two", "two-one"):
        for key, tensor in final_weights(tmp_path / name).items():
            torch.testing.assert_close(tensor, expected[key], atol=1e-6, rtol=0, msg=f"{name}: {key}")
        assert curve(tmp_path / name)[-1] == pytest.approx(curve(tmp_path / "one")[-1], abs=1e-5)
    assert summary(tmp_path / "two")["num_processes"] == summary(tmp_path / "one-two")["num_processes"] == 2


def test_a_signal_during_an_evaluation_is_waited_for_and_costs_nothing(train, tmp_path, monkeypatch):
    assert train(tmp_path / "whole") == 0
    genuine = train_cifar.evaluate
    calls = []

    def evaluate_and_be_asked_to_end(*args, **options):
        if not calls:
            signal.raise_signal(signal.SIGTERM)
        calls.append(args)
        return genuine(*args, **options)

    monkeypatch.setattr(train_cifar, "evaluate", evaluate_and_be_asked_to_end)
    assert train(tmp_path / "run") == 143
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-11").exists() and len(calls) == 1
    assert train(tmp_path / "run", "--resume", "latest") == 0
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("ended", ["the launcher", "one of both"])
def test_two_processes_save_and_end_together_when_their_launcher_or_one_of_them_is_ended(tmp_path, ended):
    launcher = launch(tmp_path / "run", "--max_train_steps", 100_000, "--log_every", 1, config="cpu_2proc")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists():
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    processes = psutil.Process(launcher.pid).children()
    assert len(processes) == 2
    if ended == "the launcher":
        launcher.kill()
    else:
        processes[1].terminate()
    _, err = launcher.communicate(timeout=60)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    assert "SIGTERM: saved" in err and "Traceback" not in err.partition("SIGTERM: saved")[0]
    assert len(list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))) >= 1


def evaluate_10000(accelerator: Accelerator) -> tuple:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
    images = torch.randint(0, 256, (10_000, 3, 4, 4), dtype=torch.uint8)
    split = LabelledImages(images, torch.randint(0, 10, (10_000,)))
    mean, std = torch.full((3,), 127.5), torch.full((3,), 73.6)
    config = replace(RECIPES["demo"][1], eval_batch_size=512)
    return evaluate(accelerator, model, split, mean, std, config, "six-unsure")


@pytest.mark.slow
def test_each_of_10000_images_counts_once_on_one_two_and_three_processes(tmp_path):
    ((alone, probabilities),) = on_processes(1, evaluate_10000, tmp_path)
    assert alone["n_images"] == 10_000
    for n in (2, 3):
        for metrics, others in on_processes(n, evaluate_10000, tmp_path):
            assert metrics["n_images"] == 10_000 and metrics["accuracy"] == alone["accuracy"]
            torch.testing.assert_close(others, probabilities)


@pytest.mark.slow
def test_two_processes_pick_their_hardest_and_stay_alike(tmp_path):
    """Each picks from its own part; to save, both compare their weights."""
    data = small_data("cifar", tmp_path)
    flags = (*data, *WITH_NORMS, *HARDEST, "--max_train_steps", "3", "--log_every", "1", "--no_final_test")
    process = fork(tmp_path / "two", *flags, config="cpu_2proc")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    lines = [line for line in curve(tmp_path / "two") if "train/proxy_loss" in line]
    assert len(lines) == 3 and all(0 < line["train/proxy_loss"] < line["train/loss"] for line in lines)


def test_lookahead_makes_the_average_the_weights_and_needs_one(train, tmp_path, capsys):
    # Of 12 updates the last two are after the second time that it looks ahead: they count too.
    flags = ("--evaluate_every", "0", "--lookahead", "5", "--no_final_test", "--views", "six-unsure")
    assert train(tmp_path / "run", *flags, "--ema_decay", "0.9") == 0
    (last,) = list_checkpoints(tmp_path / "run")[-1:]
    weights, average = load_file(last / "model.safetensors"), load_file(last / "ema.safetensors")
    assert all(torch.equal(tensor, average[name]) for name, tensor in weights.items())
    values = summary(tmp_path / "run")
    assert 0 < values["valid/accuracy_views"] <= 1 and "test/accuracy" not in values
    assert train(tmp_path / "none", *flags) == 2
    assert "add --ema_decay" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_an_optimizer_has_every_trained_parameter_once(recipe, optimizer):
    hard_share = 0.5 if recipe == "speedrun" else 1.0
    config = replace(RECIPES[recipe][1], optimizer=optimizer, hard_share=hard_share)
    model = build_model(config, 10)
    held = [id(p) for group in build_optimizer(model, config, "no").param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}


def test_muon_turns_filters_by_their_own_momentum_and_keeps_their_norm_in_a_net_without_norms():
    config = replace(RECIPES["ultimus"][1], optimizer="muon", filter_momentum=0.75)
    for hard_share in (1.0, 0.5):  # the net that picks the hardest has norms: they are not those of the other
        config = replace(config, hard_share=hard_share)
        filters, *others = build_optimizer(build_model(config, 10), config, "no").param_groups
        assert filters["keeps_norm"] and filters["momentum"] == 0.75
        assert all(group["momentum"] == config.momentum for group in others)
    speednet = RECIPES["speedrun"][1]
    assert not build_optimizer(build_model(speednet, 10), speednet, "no").param_groups[0]["keeps_norm"]


# --- options


@pytest.mark.figures
def test_images_that_stay_on_the_host_train_the_same_to_the_bit(train, tmp_path, monkeypatch, capsys):
    flags = (
        "--flip",
        "alternating",
        "--cutout",
        "8",
        "--gradient_accumulation_steps",
        "2",
        "--max_train_steps",
        "6",
    )
    assert train(tmp_path / "resident", *flags) == 0
    assert "memory of the host" not in capsys.readouterr().out
    monkeypatch.setattr(on_host, "room_on", lambda device: 1000)
    assert train(tmp_path / "from_host", *flags) == 0
    assert "has room for 0.0 MiB of data: batches are copied ahead of their use" in capsys.readouterr().out
    assert curve(tmp_path / "from_host") == curve(tmp_path / "resident")
    for name, tensor in final_weights(tmp_path / "resident").items():
        assert torch.equal(tensor, final_weights(tmp_path / "from_host")[name]), name


def test_find_lr_suggests_plots_and_starts_no_run(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--find_lr") == 0
    shown = capsys.readouterr().out
    assert "valley" in shown and "steepest" in shown
    assert [str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*.*")] == [
        "figures/lr_range_test.png"
    ]


@pytest.mark.slow
def test_compile_changes_neither_weights_nor_random_numbers(train, tmp_path):
    flags = ("--max_train_steps", "3", "--crop_padding", "2")
    assert train(tmp_path / "eager", *flags) == 0
    assert train(tmp_path / "compiled", *flags, "--compile", "--profile") == 0
    expected = final_weights(tmp_path / "eager")
    for name, tensor in final_weights(tmp_path / "compiled").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4, msg=name)
    assert summary(tmp_path / "compiled")["warm_up_seconds"] > 0
    assert "warm_up_seconds" not in summary(tmp_path / "eager")


def test_bf16_trains_close_to_fp32(train, tmp_path, monkeypatch):
    assert train(tmp_path / "fp32") == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(tmp_path / "bf16") == 0
    assert summary(tmp_path / "bf16")["mixed_precision"] == "bf16"
    assert summary(tmp_path / "bf16")["test/loss"] == pytest.approx(
        summary(tmp_path / "fp32")["test/loss"], abs=0.1
    )
    assert summary(tmp_path / "bf16")["test/loss"] != summary(tmp_path / "fp32")["test/loss"]


def test_a_run_that_diverges_says_so_and_exits_1(train, tmp_path, capsys):
    code = train(tmp_path / "run", "--optimizer", "sgd", "--lr", "100", "--max_train_steps", "12")
    assert code == 1
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()


# --- own data, and bad data


def write_folder(root: Path, n: int = 12, size: tuple[int, int] = (40, 32)) -> None:
    """Pictures of two classes, light and dark, as PNG files in a folder a class."""
    for split in ("train", "test"):
        for name, level in (("dark", 40), ("light", 210)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", size, (level + i, level, level - i)).save(folder / f"{i:02}.png")


@pytest.mark.figures
def test_own_folders_of_any_size_and_number_of_classes(train, tmp_path):
    write_folder(tmp_path / "pictures")
    flags = ("--data_dir", tmp_path / "pictures", "--batch_size", "8", "--max_train_steps", "40")
    assert train(tmp_path / "run", *flags) == 0
    assert summary(tmp_path / "run")["test/n_images"] == 24
    assert summary(tmp_path / "run")["test/accuracy"] == 1.0


def test_bad_data_and_flags_are_one_line_and_exit_code_2(train, tmp_path, capsys):
    write_folder(tmp_path / "pictures")
    broken = tmp_path / "pictures" / "train" / "dark" / "05.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    for flags, named in (
        (("--data_dir", tmp_path / "pictures"), "05.png"),
        (("--data_dir", tmp_path / "empty"), str(tmp_path / "empty")),
        (("--data_dir", tmp_path / "nowhere"), "nowhere"),
        (("--crop_padding", "-1"), "--crop_padding"),
        (("--cutout", "33"), "--cutout"),
        (("--dataset", "digits", "--image_size", "48"), "--image_size"),
        (("--model", "ultimus", "--speednet_widths", "8", "8", "8"), "--speednet_widths"),
        (("--flip", "none", "--views", "six"), "--views six"),
    ):
        assert train(tmp_path / "run", *flags) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
        assert len(lines) == 1 and lines[0].startswith("error:") and named in lines[0]
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model, smallest", [("speednet", 17), ("resnet", 16), ("ultimus", 8)])
def test_images_too_small_for_the_net_are_refused_before_training(model, smallest):
    config = Config(recipe="demo", model=model)
    net = build_model(config, 2).train()
    check_side(net, config, smallest)
    with pytest.raises(UsageError, match=f"--model {model} needs images of {smallest} pixels"):
        check_side(net, config, smallest - 1)
    net(torch.zeros(1, 3, smallest, smallest))  # at the smallest size, one image at a time can be trained on
