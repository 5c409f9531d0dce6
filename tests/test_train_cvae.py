"""The whole script, end to end, on drawn digits: what a user relies on."""

import gzip
import math
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forked_runs
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from run_folders import Killed, curve, edit_config, final_weights, summary
from two_processes import on_processes

import train_cvae
import training.latent_probe
from data.images import on_host
from data.images.drawn_digits import drawn_digits
from data.images.labelled import ImageSplits, LabelledImages
from data.seeding import Stream, seeded_generator
from models.cvae import CVAEOutput
from models.likelihoods import Bernoulli
from train_cvae import RECIPES, Config, build_model, build_optimizer, draw_batch, evaluate, kl_weight, objective
from training.checkpoints import load_weights
from training.cli import run_script

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--image_size",
    "16",
    "--latent_dim",
    "4",
    "--width",
    "16",
    "--batch_size",
    "20",
    "--max_train_steps",
    "6",
    "--log_every",
    "2",
    "--iw_samples",
    "3",
    "--tracker",
    "none",
)


# Of Efficient-VDVAE.
LEVERS = (
    *("--optimizer", "adamax", "--sigma", "softplus", "--fine_width", "16", "--width", "32"),
    *("--spatial_latents", "4", "2", "8", "1", "--narrow_posteriors"),
)


GENUINE_FIND_JUDGE = train_cvae.find_judge


class AlwaysOne:
    """A judge to whom every picture is a 1."""

    def __call__(self, images):
        return torch.ones(len(images), dtype=torch.int64)


@pytest.fixture
def train(fresh_accelerate, blank_figures, monkeypatch):
    """Run the script in this process: train(output_dir, *flags) -> exit code.

    Its judge costs nothing, and its probes of the latent next to nothing (tests/training/test_latent_probe.py).
    """
    monkeypatch.setattr(train_cvae, "find_judge", lambda *args: AlwaysOne())
    monkeypatch.setattr(training.latent_probe, "N_STEPS", 20)

    def run(output_dir, *flags) -> int:
        fresh_accelerate()
        flags = ["demo", *TINY, "--output_dir", str(output_dir), *map(str, flags)]
        monkeypatch.setattr(sys, "argv", ["train_cvae.py", *flags])
        try:
            run_script(train_cvae.main, RECIPES, "", user_errors=(train_cvae.DataError,))
        except SystemExit as end:
            return end.code
        return 0

    return run


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """A few of the demo's pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cvae, "drawn_digits", lambda image_size: drawn_digits(100, 42, image_size))
        yield


# --- one run


@pytest.mark.figures
@pytest.mark.smoke
def test_a_run_leaves_what_the_contract_says(train, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run) == 0
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "checkpoint-" not in str(p)}
    figures = (
        "active_units",
        "elbo",
        "interpolations",
        "latent_map",
        "loss",
        "lr",
        "prior_samples",
        "reconstructions",
        "relabelled",
        "terms",
        "throughput",
        "wrong_labels",
    )
    assert found >= {"config.json", "metrics.jsonl", "summary.json", *(f"figures/{name}.png" for name in figures)}
    assert {path.partition("/")[0] for path in found} == {"config.json", "metrics.jsonl", "summary.json", "figures"}
    values = summary(run)
    names = (
        "elbo",
        "reconstruction",
        "kl",
        "bits_per_dim",
        "iw_bound",
        "classifier_accuracy",
        "wrong_label_hits",
        "prior_hits",
        "probe_linear",
        "probe_mlp",
        "probe_chance",
    )
    assert all(math.isfinite(values[f"test/{name}"]) for name in names)
    assert values["test/elbo"] == pytest.approx(-values["test/reconstruction"] - values["test/kl"])
    assert values["test/bits_per_dim"] == pytest.approx(-values["test/elbo"] / 256 / math.log(2), rel=1e-5)
    assert 0 <= values["test/active_units"] <= 4 and values["test/n_images"] == 42
    labels = drawn_digits(100, 42, 16)[3]
    assert values["test/classifier_accuracy"] == pytest.approx(float((labels == 1).float().mean()))
    assert values["test/prior_hits"] == pytest.approx(5 / 42)  # labels 0 to 9 in turn
    logged = set().union(*curve(run))
    assert {"train/loss", "train/reconstruction", "train/kl", "lr", "train/gradient_norm", "test/elbo"} <= logged
    assert {"valid/elbo", "valid/bits_per_dim", "train/label_loss"} <= logged
    assert values["best/valid/elbo"] == max(line["valid/elbo"] for line in curve(run) if "valid/elbo" in line)
    assert f"test ELBO {values['test/elbo']:.2f} nats" in capsys.readouterr().out


def test_without_a_judge_none_is_trained_and_no_hits_are_reported(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_cvae, "find_judge", GENUINE_FIND_JUDGE)
    monkeypatch.setattr(train_cvae, "train_judge", lambda *args: pytest.fail("a judge was asked for"))
    assert train(tmp_path / "run", "--judge", "none") == 0
    values = summary(tmp_path / "run")
    assert not [name for name in values if "hits" in name or "classifier" in name]
    assert {"test/elbo", "test/iw_bound", "test/probe_mlp"} <= values.keys()
    assert (tmp_path / "run" / "figures" / "wrong_labels.png").exists()
    shown = capsys.readouterr().out
    assert "test ELBO" in shown and "hits" not in shown and "figures in" in shown


def test_eval_only_gives_the_same_bounds_and_trains_nothing(train, tmp_path):
    assert train(tmp_path / "run") == 0
    assert train(tmp_path / "evaluated", "--eval_only", "--resume", tmp_path / "run") == 0
    for name in ("test/elbo", "test/iw_bound", "test/wrong_label_hits", "test/probe_mlp"):
        assert summary(tmp_path / "evaluated")[name] == pytest.approx(summary(tmp_path / "run")[name], rel=1e-5)
    assert not (tmp_path / "evaluated" / "checkpoints").exists()


@pytest.mark.long
@pytest.mark.slow
def test_the_demo_as_the_readme_launches_it_learns_the_digits(tmp_path):
    """Five of its eight epochs, after which 80 % and 68 % of the pictures were hits here."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command = [*launch, "train_cvae.py", "demo", "--epochs", "5", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    elbos = [line["valid/elbo"] for line in curve(tmp_path / "run") if "valid/elbo" in line]
    assert elbos[-1] > elbos[0] + 10
    values = summary(tmp_path / "run")
    assert values["test/elbo"] <= values["test/iw_bound"] + 0.1
    assert values["test/classifier_accuracy"] >= 0.97
    assert values["test/wrong_label_hits"] >= 0.65 and values["test/prior_hits"] >= 0.55
    pictures = {p.name.rsplit("_", 2)[0] for p in (tmp_path / "run").rglob("media/images/figures/*.png")}
    assert {"wrong_labels", "prior_samples", "relabelled", "latent_map"} <= pictures


@pytest.mark.parametrize(
    "flags",
    [
        ("--likelihood", "continuous_bernoulli", "--conditioning", "concat"),
        ("--likelihood", "logistic_mixture", "--channels", "1", "--patch_size", "2", "--free_bits", "0.5"),
        (
            "--likelihood",
            "gaussian",
            "--spatial_latents",
            "4",
            "2",
            "--kl_warmup",
            "0.5",
            "--classifier_weight",
            "5",
            "--narrow_posteriors",
            "--classifier_pooling",
            "2",
            "--picture_temperature",
            "0.5",
        ),
        ("--binarisation", "static", "--encoder_sees_label", "--label_dropout", "0.2", "--probe_weight", "1"),
    ],
)
def test_every_likelihood_and_lever_trains(train, tmp_path, flags):
    assert train(tmp_path / "run", *flags) == 0
    values = summary(tmp_path / "run")
    assert math.isfinite(values["test/elbo"]) and values["test/kl"] >= 0


def test_static_binarisation_shows_the_same_pixels_in_each_epoch(train, tmp_path, monkeypatch):
    seen = {}

    def note(model, data, config, ids, step):
        for i, image in zip(ids.tolist(), data.images[ids], strict=True):
            seen.setdefault(i, set()).add(tuple(image.flatten().tolist()))
        return genuine(model, data, config, ids, step)

    genuine = train_cvae.draw_batch
    monkeypatch.setattr(train_cvae, "draw_batch", note)
    flags = ("--binarisation", "static", "--max_train_steps", "15", "--valid_fraction", "0")
    assert train(tmp_path / "run", *flags) == 0
    assert len(seen) == 100 and all(len(pictures) == 1 for pictures in seen.values())
    assert {value for pictures in seen.values() for picture in pictures for value in picture} == {0, 255}


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_validation_images_are_binarised_once_by_a_stream_of_their_own(train, tmp_path, monkeypatch, binarisation):
    validated, genuine = [], train_cvae.evaluate

    def note(accelerator, model, targets, *rest):
        validated.append(targets)
        return genuine(accelerator, model, targets, *rest)

    monkeypatch.setattr(train_cvae, "evaluate", note)
    flags = ("--binarisation", binarisation, "--valid_fraction", "0.3", "--max_train_steps", "8")
    assert train(tmp_path / "run", *flags) == 0
    *of_validation, of_test = validated
    assert len(of_validation) == 2 and len(of_test) == 42  # two epochs of 70 images
    assert torch.equal(*of_validation) and set(of_validation[0].unique().tolist()) == {0, 1}
    assert len(of_validation[0]) == 30
    images = ImageSplits.of(*drawn_digits(100, 42, 16)).with_validation(0.3).valid.images
    for stream in (Stream.TRAINING_PIXELS, Stream.TEST_PIXELS):
        generator = seeded_generator(torch.device("cpu"), stream, 0)
        assert not torch.equal(Bernoulli().targets(images, generator), of_validation[0])


def test_the_checkpoint_that_is_tested_is_the_best_by_validation(train, tmp_path, monkeypatch):
    elbos = iter([-90.0, -80.0, -85.0, -99.0])  # three validations and the test
    tested, genuine = [], train_cvae.evaluate

    def as_told(*args):
        metrics, *rest = genuine(*args)
        return metrics | {"elbo": next(elbos)}, *rest

    def note(model, checkpoint):
        tested.append(checkpoint.name)
        load_weights(model, checkpoint)

    monkeypatch.setattr(train_cvae, "evaluate", as_told)
    monkeypatch.setattr(train_cvae, "load_weights", note)
    assert train(tmp_path / "run", "--max_train_steps", "15") == 0
    assert tested == ["checkpoint-10"] and summary(tmp_path / "run")["best/valid/elbo"] == -80.0


def test_each_update_is_drawn_by_its_number_whatever_was_drawn_before():
    config = Config(recipe="test", image_size=16, latent_dim=4, width=16, flip=True, label_dropout=0.5)
    model = build_model(config, 10)
    images, labels, *_ = drawn_digits(20, 1, 16)
    data, ids = LabelledImages(images, labels), torch.arange(12)

    def drawn(step, seed=0):
        return torch.cat(
            [
                part.flatten(1) if part.ndim > 1 else part[:, None]
                for part in draw_batch(model, data, replace(config, seed=seed), ids, step)
            ],
            1,
        )

    first = drawn(0)
    others = [drawn(1), drawn(2), drawn(0, seed=1)]
    assert torch.equal(drawn(0), first)
    of_noise = slice(-model.n_noise, None)
    assert all(not (first[:, of_noise] == other[:, of_noise]).any() for other in others)


# --- the choices


def test_updates_with_a_gradient_beyond_the_limit_are_left_out_and_counted(train, tmp_path, monkeypatch):
    flags = ("--log_every", "1", "--no_final_test", "--evaluate_every", "0")
    assert train(tmp_path / "all", *flags) == 0
    norms = [line["train/gradient_norm"] for line in curve(tmp_path / "all") if "train/gradient_norm" in line]
    assert "train/skipped" not in set().union(*curve(tmp_path / "all"))
    limit = sorted(norms)[2]
    weights = []

    def noted(accelerator, model, *rest):
        result = genuine(accelerator, model, *rest)
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return result

    genuine = train_cvae.train_update
    monkeypatch.setattr(train_cvae, "train_update", noted)
    assert train(tmp_path / "some", *flags, "--skip_gradient_norm", limit, "--pct_start", "0.3") == 0
    lines = [line for line in curve(tmp_path / "some") if "train/skipped" in line]
    assert [line["train/skipped"] for line in lines] == [
        float(line["train/gradient_norm"] > limit) for line in lines
    ]
    skipped = [bool(line["train/skipped"]) for line in lines]
    assert 0 < sum(skipped) < len(skipped) == 6
    for before, after, left_out in zip(weights, weights[1:], skipped[1:], strict=False):
        assert all(torch.equal(before[name], after[name]) for name in before) == left_out


def test_the_weight_of_the_kl_rises_to_its_own_and_stays(train):
    config = Config(recipe="test", kl_weight=2.0, kl_warmup=0.5)
    assert [kl_weight(config, step, 8) for step in range(8)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert kl_weight(Config(recipe="test"), 0, 8) == 1.0


def test_the_objective_is_the_bound_as_it_is_weighted_and_each_level_is_told():
    kl = torch.tensor([[4.0, 1.0], [2.0, 0.5]])
    output = CVAEOutput(*[None] * 6)._replace(kl=kl)
    log_prob, label_loss = torch.tensor([-10.0, -20.0]), torch.tensor([0.5, 0.25])
    config = Config(recipe="test", free_bits=1.0)
    sums = objective(log_prob, output, label_loss, config, weight=0.5)
    assert float(sums["loss"]) == 30 + 0.5 * (4 + 1 + 2 + 1)  # a level of half a nat counts as a whole one
    assert (float(sums["reconstruction"]), float(sums["kl"]), float(sums["label_loss"])) == (30, 7.5, 0.75)
    assert (float(sums["kl_level_0"]), float(sums["kl_level_1"])) == (6, 1.5)
    alone = objective(log_prob, output._replace(kl=kl[:, :1]), label_loss, config, weight=0.5)
    assert "kl_level_0" not in alone


@pytest.mark.parametrize(("likelihood", "share_left"), [("bernoulli", 0.1), ("logistic_mixture", 0.3)])
def test_it_overfits_one_batch(likelihood, share_left):
    torch.manual_seed(0)
    config = Config(recipe="test", image_size=16, latent_dim=8, width=16, likelihood=likelihood, kl_weight=0.0)
    images, labels, *_ = drawn_digits(16, 10, 16)
    model = build_model(config, 10)
    optimizer = build_optimizer(model, config, "no")
    targets = model.likelihood.targets(images, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        log_prob, _, _ = model(targets, labels, labels, torch.zeros(16, model.cvae.n_noise))
        (-log_prob.mean() / 256).backward()
        optimizer.step()
        losses.append(-float(log_prob.mean()))
    assert losses[-1] < share_left * losses[0]


# --- resuming


def test_a_resume_on_other_images_of_as_many_classes_and_as_large_is_refused(train, tmp_path, monkeypatch, capsys):
    assert train(tmp_path / "run", "--max_train_steps", "1") == 0
    images, *rest = drawn_digits(100, 42, 16)
    monkeypatch.setattr(train_cvae, "drawn_digits", lambda image_size: (255 - images, *rest))
    assert train(tmp_path / "run", "--max_train_steps", "2", "--resume", "latest") == 2
    assert "another data.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ("--spatial_latents", "4", "2", "--label_dropout", "0.3", "--probe_weight", "0.5", "--kl_warmup", "0.5"),
        (*LEVERS, "--skip_gradient_norm", "1.05", "--classifier_weight", "2", "--classifier_noise", "0.3"),
        ("--likelihood", "gaussian", "--flip", "--ema_decay", "0", "--gradient_accumulation_steps", "2"),
    ],
)
def test_killed_anywhere_and_resumed_equals_uninterrupted_bit_for_bit(train, tmp_path, monkeypatch, flags):
    flags = (*flags, "--checkpointing_steps", "3", "--max_train_steps", "10")
    assert train(tmp_path / "whole", *flags) == 0
    genuine = train_cvae.train_update
    calls = 0

    def killed_at_5_and_8(*args):
        nonlocal calls
        calls += 1
        if calls in (5, 10):  # after 4 updates, and (resumed at 3) after 7
            raise Killed
        return genuine(*args)

    monkeypatch.setattr(train_cvae, "train_update", killed_at_5_and_8)
    for _ in range(2):
        with pytest.raises(Killed):
            train(tmp_path / "killed", *flags, "--resume", "latest")
    assert train(tmp_path / "killed", *flags, "--resume", "latest") == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for name, tensor in final_weights(tmp_path / "whole").items():
        assert torch.equal(tensor, final_weights(tmp_path / "killed")[name]), name


def test_a_run_of_before_images_were_held_out_goes_on_with_all_of_them(train, tmp_path):
    flags = ("--valid_fraction", "0", "--max_train_steps", "4")
    assert train(tmp_path / "run", *flags) == 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-4")
    edit_config(checkpoint, lambda config: config.pop("valid_fraction"))
    assert train(tmp_path / "run", "--max_train_steps", "6", "--resume", "latest") == 0
    assert "train/loss" in curve(tmp_path / "run")[-2] and "valid/elbo" not in set().union(*curve(tmp_path / "run"))


# --- equal updates, equal scores


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_double_batch(train, tmp_path, monkeypatch):
    """Noise and all: it is drawn for the whole update."""
    flags = (
        "--spatial_latents",
        "4",
        "2",
        "--probe_weight",
        "0.5",
        "--label_dropout",
        "0.2",
        "--flip",
        "--classifier_noise",
        "0.2",
        *("--optimizer", "adamax", "--sigma", "softplus", "--skip_gradient_norm", "2"),
        "--lr",
        "1e-3",
        "--max_train_steps",
        "3",
        "--batch_size",
    )
    judge = train_tiny_judge(tmp_path / "judge")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        "--config_file",
        "accelerate_configs/cpu_2proc.yaml",
        "train_cvae.py",
        "demo",
        *TINY,
        "--judge",
        str(judge),
        "--output_dir",
        str(tmp_path / "two"),
        *flags,
        "10",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    monkeypatch.setattr(train_cvae, "drawn_digits", drawn_digits_of_side)  # the launched script's, whole
    monkeypatch.setattr(train_cvae, "find_judge", GENUINE_FIND_JUDGE)
    assert train(tmp_path / "doubled", *flags, 20, "--judge", judge) == 0
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    expected = final_weights(tmp_path / "doubled")
    for name, tensor in final_weights(tmp_path / "two").items():
        # AdamW's first steps have the size of the rate whatever the gradient's: rounding decides tiny ones' sign.
        torch.testing.assert_close(tensor, expected[name], atol=5e-4, rtol=0, msg=name)
    two, doubled = summary(tmp_path / "two"), summary(tmp_path / "doubled")
    assert two["num_processes"] == 2 and two["test/n_images"] == doubled["test/n_images"] == 1000
    for name in ("test/elbo", "test/iw_bound", "test/wrong_label_hits", "test/classifier_accuracy"):
        assert two[name] == pytest.approx(doubled[name], rel=2e-3, abs=2e-3), name
    first = [
        next(line["train/loss"] for line in curve(tmp_path / name) if "train/loss" in line)
        for name in ("two", "doubled")
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the launched processes: sums in the same order
    try:
        accumulates = (*flags, 10, "--gradient_accumulation_steps", 2, "--judge", judge, "--no_final_test")
        assert train(tmp_path / "accumulated", *accumulates) == 0
    finally:
        torch.set_num_threads(threads)
    expected = final_weights(tmp_path / "accumulated")
    for name, tensor in final_weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0, msg=name)


def drawn_digits_of_side(image_size: int):
    return drawn_digits(image_size=image_size)


def train_tiny_judge(folder: Path) -> Path:
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
        "5",
        "--tracker",
        "none",
        "--output_dir",
        folder,
        check=True,
    )
    return folder


def test_accumulation_trains_as_the_doubled_batch(train, tmp_path):
    assert train(tmp_path / "accumulated", "--batch_size", "10", "--gradient_accumulation_steps", "2") == 0
    assert train(tmp_path / "doubled") == 0
    expected = final_weights(tmp_path / "doubled")
    for name, tensor in final_weights(tmp_path / "accumulated").items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-3, rtol=0, msg=name)


def evaluate_57(accelerator: Accelerator) -> tuple:
    torch.manual_seed(0)
    config = Config(recipe="test", image_size=16, latent_dim=4, width=16, eval_batch_size=10)
    model = build_model(config, 10)
    images, labels = drawn_digits(1, 57, 16)[2:4]
    targets = model.likelihood.targets(images, torch.Generator().manual_seed(0))
    return evaluate(accelerator, model, targets, labels, config, 3)


@pytest.mark.slow
def test_bounds_do_not_depend_on_the_number_of_processes(tmp_path):
    ((expected, latents, kl_units),) = on_processes(1, evaluate_57, tmp_path)
    assert expected["n_images"] == 57
    for n in (2, 3):
        for metrics, other_latents, other_kl in on_processes(n, evaluate_57, tmp_path):
            assert metrics == pytest.approx(expected, rel=1e-5)
            torch.testing.assert_close(other_latents, latents)
            torch.testing.assert_close(other_kl, kl_units)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_optimizer_has_every_trained_parameter_once(recipe):
    config = replace(RECIPES[recipe][1], probe_weight=1.0)
    model = build_model(config, 10)
    groups = build_optimizer(model, config, "no").param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}


# --- options


@pytest.mark.figures
def test_images_that_stay_on_the_host_train_the_same_to_the_bit(train, tmp_path, monkeypatch, capsys):
    flags = ("--flip", "--gradient_accumulation_steps", "2")
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


def test_the_range_test_begins_at_the_weight_of_the_kl_that_the_run_begins_at(train, tmp_path, monkeypatch):
    weights = []

    def note(*args):
        weights.append(kl_weight(*args))
        return weights[-1]

    monkeypatch.setattr(train_cvae, "kl_weight", note)
    flags = ("--kl_warmup", "0.5", "--kl_weight", "2", "--evaluate_every", "0")
    assert train(tmp_path / "run", *flags) == 0
    of_run, weights[:] = [*weights], []
    assert train(tmp_path / "run", *flags, "--find_lr") == 0
    assert weights[:6] == of_run == pytest.approx([2 / 3, 4 / 3, 2, 2, 2, 2])


@pytest.mark.long
@pytest.mark.slow
def test_compile_changes_neither_weights_nor_random_numbers(train, tmp_path):
    few_levels = ("--image_size", "8", "--latent_dim", "2", "--classifier_weight", "0")  # each layer takes seconds
    flags = (*few_levels, "--max_train_steps", "3", "--log_every", "1", "--valid_fraction", "0")
    assert train(tmp_path / "eager", *flags) == 0
    assert train(tmp_path / "compiled", *flags, "--compile", "--profile") == 0
    losses = [
        [line["train/loss"] for line in curve(tmp_path / name) if "train/loss" in line]
        for name in ("eager", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert summary(tmp_path / "compiled")["warm_up_seconds"] > 0


def test_bf16_trains_close_to_fp32(train, tmp_path, monkeypatch):
    assert train(tmp_path / "fp32") == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(tmp_path / "bf16") == 0
    elbos = [summary(tmp_path / name)["test/elbo"] for name in ("fp32", "bf16")]
    assert elbos[0] == pytest.approx(elbos[1], rel=0.05) and elbos[0] != elbos[1]


def test_a_run_that_diverges_says_so_and_exits_1(train, tmp_path, capsys):
    # A decay of 100 x 100 in each update blows the weights up.
    assert train(tmp_path / "run", "--lr", "100", "--weight_decay", "100", "--max_grad_norm", "0") == 1
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()


# --- own data, and bad data


def write_idx(root: Path, n: int = 40, labels=None, magic: int = 2051, cut: int = 0) -> Path:
    """MNIST's four files with n training and n test pictures."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        pixels = rng.integers(0, 256, (n, 16, 16), dtype=np.uint8)
        numbers = np.arange(n, dtype=np.uint8) % 10 if labels is None else np.asarray(labels, np.uint8)
        images = struct.pack(">IIII", magic, n, 16, 16) + pixels.tobytes()
        (root / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images[: len(images) - cut]))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + numbers.tobytes())
    return root


@pytest.mark.figures
def test_own_idx_files(train, tmp_path):
    assert train(tmp_path / "run", "--data_dir", write_idx(tmp_path / "idx")) == 0
    assert summary(tmp_path / "run")["test/n_images"] == 40


def test_bad_data_and_flags_are_one_line_and_exit_code_2(train, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for flags, named in (
        (("--data_dir", write_idx(tmp_path / "cut", cut=100)), "train-images-idx3-ubyte.gz"),
        (("--data_dir", write_idx(tmp_path / "magic", magic=1234)), "train-images-idx3-ubyte.gz"),
        (("--data_dir", tmp_path / "empty"), str(tmp_path / "empty")),
        (("--width", "20"), "width"),
        (("--spatial_latents", "5", "2"), "spatial"),
        (("--optimizer", "adamax", "--weight_decay", "0.1"), "--weight_decay"),
        (("--dataset", "digits", "--channels", "3"), "--channels 1"),
    ):
        assert train(tmp_path / "run", *flags) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert line.startswith("error:") and named in line
    assert not (tmp_path / "run").exists()
