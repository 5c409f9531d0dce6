"""The whole script, end to end, on textured shapes: what a user relies on."""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import forked_runs
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from run_folders import Killed, curve, edit_config, final_weights, summary
from two_processes import on_processes

import train_unet
from data.images import on_host
from data.images.masked import MaskSplit, masks_from_trimaps
from data.images.textured_shapes import textured_shapes
from models.segmentation_losses import segmentation_loss
from train_unet import RECIPES, VARIANTS, Config, build_model, build_optimizer, evaluate
from training.cli import run_script
from training.schedules import set_lr

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--width",
    "8",
    "--depth",
    "2",
    "--image_size",
    "32",
    "--batch_size",
    "10",
    "--max_train_steps",
    "6",
    "--log_every",
    "2",
    "--tracker",
    "none",
)

LEVERS = (
    *("--encoder", "residual", "--encoder_blocks", "2", "--deep_supervision", "0.5"),
    *("--gamma", "0.5", "--low_resolution", "0.5"),
)

COMPARISON = ("table", "curves", "predictions")


@pytest.fixture
def train(fresh_accelerate, blank_figures, monkeypatch):
    """Run the script in this process: train(output_dir, *flags) -> exit code."""

    def run(output_dir, *flags, recipe="demo") -> int:
        fresh_accelerate()
        flags = [recipe, *TINY, "--output_dir", str(output_dir), *map(str, flags)]
        monkeypatch.setattr(sys, "argv", ["train_unet.py", *flags])
        try:
            run_script(train_unet.main, RECIPES, "", user_errors=(train_unet.DataError,))
        except SystemExit as end:
            return end.code
        return 0

    return run


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    """A few of the demo's pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_unet, "textured_shapes", lambda image_size: textured_shapes(50, 21, image_size))
        yield


def launch(output_dir, *flags, config: str) -> subprocess.Popen:
    """As users do it."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        "--config_file",
        f"accelerate_configs/{config}.yaml",
        "train_unet.py",
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


@pytest.mark.figures
@pytest.mark.smoke
def test_a_run_leaves_what_the_contract_says(train, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run) == 0
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {"config.json", "metrics.jsonl", "summary.json", "test_predictions.npz"} <= found
    for name in (
        "augmentations",
        "best_and_worst",
        "data_statistics",
        "loss",
        "lr",
        "model_summary",
        "overlays",
        "samples",
        "scores",
        "throughput",
    ):
        assert f"figures/{name}.png" in found
    values = summary(run)
    names = (
        "dice",
        "dice_per_image",
        "iou",
        "iou_per_image",
        "pixel_accuracy",
        "dice_pet",
        "iou_background",
        "dice_views",
        "iou_views",
    )
    assert all(0 <= values[f"test/{name}"] <= 1 for name in names) and math.isfinite(values["test/loss"])
    assert values["test/n_images"] == 21
    logged = set().union(*curve(run))
    assert {"train/loss", "lr", "train/gradient_norm", "valid/dice", "valid/iou", "valid/loss"} <= logged
    printed = capsys.readouterr().out
    assert "45 training, 5 validation and 21 test pictures" in printed
    assert f"test Dice {values['test/dice']:.4f}, IoU {values['test/iou']:.4f}" in printed
    assert f"Dice {values['test/dice_views']:.4f} over the views of 'scales'" in printed
    assert values["test/dice_views"] != values["test/dice"]


def test_the_test_split_is_read_once_and_of_the_weights_that_validated_best(train, tmp_path, monkeypatch):
    genuine, seen = train_unet.evaluate, []

    def with_dice_of_this_order(accelerator, model, split, *args):
        metrics, predicted, dice = genuine(accelerator, model, split, *args)
        seen.append((len(split), args[-1]))
        if len(split) == 5:
            metrics["dice"] = (0.3, 0.6, 0.5)[len(seen) - 1]
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        evaluated.append(weights)
        return metrics, predicted, dice

    evaluated: list[dict] = []
    monkeypatch.setattr(train_unet, "evaluate", with_dice_of_this_order)
    monkeypatch.setattr(train_unet, "better_by", lambda *_: lambda metrics, best: metrics["dice"] > best["dice"])
    assert train(tmp_path / "run", "--max_train_steps", "12", "--checkpoints_total_limit", "1") == 0
    assert [n for n, _ in seen] == [5, 5, 5, 21, 21]  # at steps 5, 10 and 12; without views and with
    best, last, tested = evaluated[1], evaluated[2], evaluated[3]
    assert all(torch.equal(tested[name], best[name]) for name in best)
    assert any(not torch.equal(tested[name], last[name]) for name in best)
    found = summary(tmp_path / "run")
    assert found["best/step"] == 10 and found["best/valid/dice"] == 0.6
    assert [line["step"] for line in curve(tmp_path / "run") if "test/dice" in line] == [12]


def test_without_a_validation_split_the_last_weights_are_tested(train, tmp_path):
    assert train(tmp_path / "run", "--valid_fraction", "0") == 0
    lines = curve(tmp_path / "run")
    assert not any(name.startswith("valid/") for line in lines for name in line)
    assert [line["step"] for line in lines if "test/dice" in line] == [6]
    assert (tmp_path / "run" / "figures" / "overlays.png").exists()


def test_eval_only_gives_the_same_score_and_trains_nothing(train, tmp_path):
    assert train(tmp_path / "run") == 0
    assert train(tmp_path / "evaluated", "--eval_only", "--resume", tmp_path / "run") == 0
    for name in ("test/dice", "test/iou_per_image", "test/loss"):
        assert summary(tmp_path / "evaluated")[name] == pytest.approx(summary(tmp_path / "run")[name], rel=1e-6)
    assert not (tmp_path / "evaluated" / "checkpoints").exists()


@pytest.mark.long
@pytest.mark.slow
def test_the_demo_as_the_readme_launches_it_learns_the_shapes(tmp_path):
    """Seven of its ten epochs."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command = [*launch, "train_unet.py", "demo", "--epochs", "7", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    scores = [line["valid/dice"] for line in curve(tmp_path / "run") if "valid/dice" in line]
    assert scores[0] < 0.85 and scores[-1] >= 0.95 and summary(tmp_path / "run")["test/dice"] >= 0.95
    pictures = {p.name.split("_")[0] for p in (tmp_path / "run").rglob("media/images/figures/*.png")}
    assert {"overlays", "best", "samples", "augmentations", "data", "model", "scores"} <= pictures


# --- the four variants


@pytest.mark.slow
def test_all_trains_the_variants_compares_them_and_resumes_after_a_kill(train, tmp_path, monkeypatch, capsys):
    flags = ("--dataset", "shapes", "--epochs", "1", "--max_train_steps", "3")
    assert train(tmp_path / "whole", *flags, recipe="all") == 0
    shown = capsys.readouterr().out
    for name, variant in VARIANTS.items():
        config = train_unet.json.loads((tmp_path / "whole" / name / "config.json").read_text())
        assert config["recipe"] == name and variant.items() <= config.items()
        row = next(line for line in shown.splitlines() if f" {name} " in line)
        assert f"{summary(tmp_path / 'whole' / name)['test/dice']:.4f}" in row
    assert (tmp_path / "whole" / "comparison.md").read_text() in shown
    assert all((tmp_path / "whole" / "figures" / f"comparison_{n}.png").exists() for n in COMPARISON)

    genuine, calls = train_unet.train_update, 0

    def killed_in_the_second(*args):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Killed
        return genuine(*args)

    monkeypatch.setattr(train_unet, "train_update", killed_in_the_second)
    with pytest.raises(Killed):
        train(tmp_path / "killed", *flags, "--checkpointing_steps", "1", recipe="all")
    monkeypatch.setattr(train_unet, "train_update", genuine)
    # With the settings of each variant's run; those that have not begun need the flags.
    assert train(tmp_path / "killed", *flags, "--resume", "latest", recipe="all") == 0
    for name in VARIANTS:
        for key, tensor in final_weights(tmp_path / "whole" / name).items():
            assert torch.equal(tensor, final_weights(tmp_path / "killed" / name)[key]), (name, key)


def test_a_run_of_before_there_was_a_validation_split_goes_on_without_one(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--valid_fraction", "0", "--max_train_steps", "4") == 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-4")

    def as_it_was(config: dict) -> None:
        del config["valid_fraction"], config["evaluate_every"]
        config["evaluate_every"] = 1

    edit_config(checkpoint, as_it_was)
    assert train(tmp_path / "evaluated", "--eval_only", "--resume", tmp_path / "run") == 0
    assert summary(tmp_path / "evaluated")["test/dice"] == summary(tmp_path / "run")["test/dice"]
    assert train(tmp_path / "run", "--max_train_steps", "6", "--resume", "latest") == 0
    assert "50 training, 0 validation and 21 test pictures" in capsys.readouterr().out
    assert train(tmp_path / "run", "--valid_fraction", "0.1", "--max_train_steps", "8", "--resume", "latest") == 2
    assert "--valid_fraction" in capsys.readouterr().err


def test_a_resume_with_another_optimizer_is_refused(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--max_train_steps", "2", "--optimizer", "muon") == 0
    capsys.readouterr()
    assert train(tmp_path / "run", "--optimizer", "adamw", "--resume", "latest") == 2
    assert "trained with --optimizer muon" in capsys.readouterr().err


def test_all_refuses_to_resume_from_one_run(train, tmp_path, capsys):
    assert train(tmp_path / "all", "--resume", tmp_path, recipe="all") == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_overfits_one_batch(name):
    torch.manual_seed(0)
    train, _ = textured_shapes(4, 1, 32)
    images = train.images.float() / 127.5 - 1
    masks = masks_from_trimaps(train.trimaps, "binary", "pet")
    config = Config(recipe=name, width=16, depth=3, **VARIANTS[name])
    assert config == train_unet.replace(RECIPES[name][1], width=16, depth=3)
    model = build_model(config, 2)
    optimizer = build_optimizer(model, config, "no")
    for _ in range(100):
        optimizer.zero_grad()
        segmentation_loss(model(images), masks, config.loss).mean().backward()
        optimizer.step()
    with torch.no_grad():
        predicted = train_unet.predict_masks(model(images))
    metrics = train_unet.segmentation_scores(train_unet.pixel_confusion(predicted, masks, 2), ("background", "pet"))
    assert metrics["dice"] >= 0.99 and metrics["dice_per_image"] >= 0.99


# --- resuming


@pytest.mark.parametrize(
    "flags",
    [
        (
            *("--loss", "bce+dice", "--dropout", "0.2"),
            *("--half_size_share", "0.3", "--three_quarter_size_share", "0.3"),
            *LEVERS,
        ),
        (
            "--downsampling",
            "strided",
            "--upsampling",
            "bilinear",
            "--ema_decay",
            "0",
            "--classes",
            "trimap",
            "--gradient_accumulation_steps",
            "2",
            "--norm",
            "group",
        ),
    ],
)
def test_killed_anywhere_and_resumed_equals_uninterrupted_bit_for_bit(train, tmp_path, monkeypatch, flags):
    flags = (*flags, "--checkpointing_steps", "3", "--max_train_steps", "10")
    assert train(tmp_path / "whole", *flags) == 0
    genuine = train_unet.train_update
    calls = 0

    def killed_at_5_and_8(*args):
        nonlocal calls
        calls += 1
        if calls in (5, 10):  # after 4 updates, and (resumed at 3) after 7
            raise Killed
        return genuine(*args)

    monkeypatch.setattr(train_unet, "train_update", killed_at_5_and_8)
    for _ in range(2):
        with pytest.raises(Killed):
            train(tmp_path / "killed", *flags, "--resume", "latest")
    assert train(tmp_path / "killed", *flags, "--resume", "latest") == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for name, tensor in final_weights(tmp_path / "whole").items():
        assert torch.equal(tensor, final_weights(tmp_path / "killed")[name]), name


# --- equal updates, equal scores


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_double_batch(train, tmp_path, monkeypatch):
    """With batch norm over both processes; augmentation and order are the same for any number of them."""
    flags = ("--lr", "1e-3", "--max_train_steps", "3", "--loss", "bce+dice", "--batch_size")
    process = launch(tmp_path / "two", *flags, 10, config="cpu_2proc")
    monkeypatch.setattr(train_unet, "textured_shapes", textured_shapes)  # the launched script's, whole
    assert train(tmp_path / "doubled", *flags, 20) == 0
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    expected = final_weights(tmp_path / "doubled")
    for name, tensor in final_weights(tmp_path / "two").items():
        # Orthogonalized, a filter's update has one size whatever the gradient's: rounding turns the tiny ones.
        torch.testing.assert_close(tensor, expected[name], atol=5e-4, rtol=0, msg=name)
    two, doubled = summary(tmp_path / "two"), summary(tmp_path / "doubled")
    assert two["num_processes"] == 2 and two["test/n_images"] == doubled["test/n_images"] == 100
    assert two["test/loss"] == pytest.approx(doubled["test/loss"], abs=1e-3)
    first = [
        next(line["train/loss"] for line in curve(tmp_path / name) if "train/loss" in line)
        for name in ("two", "doubled")
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates_with_dropout_and_augmentation(train, tmp_path, monkeypatch):
    """What is drawn depends on the seed, the update and the micro-batch, not on the process that draws it."""
    flags = (
        "--norm",
        "group",
        "--dropout",
        "0.3",
        "--optimizer",
        "adamw",
        "--lr",
        "1e-3",
        "--cutmix",
        "0.5",
        "--half_size_share",
        "0.5",
        "--max_train_steps",
        "4",
        *LEVERS,
    )
    command = ("train_unet.py", "demo", *TINY, "--output_dir", tmp_path / "two", *flags)
    process = forked_runs.start(*command, config="cpu_2proc")
    monkeypatch.setattr(train_unet, "textured_shapes", textured_shapes)  # the launched script's, whole
    assert train(tmp_path / "one", *flags, "--gradient_accumulation_steps", "2") == 0
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    expected = final_weights(tmp_path / "one")
    for name, tensor in final_weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0, msg=name)


def test_accumulation_trains_as_the_doubled_batch_where_norms_are_of_an_image(train, tmp_path):
    flags = ("--norm", "group", "--loss", "dice", "--seed", "1")  # of 0, rounding decides a maximum of a pool
    assert train(tmp_path / "accumulated", *flags, "--batch_size", "5", "--gradient_accumulation_steps", "2") == 0
    assert train(tmp_path / "doubled", *flags) == 0
    expected = final_weights(tmp_path / "doubled")
    for name, tensor in final_weights(tmp_path / "accumulated").items():
        torch.testing.assert_close(tensor, expected[name], atol=5e-4, rtol=0, msg=name)


def evaluate_37(accelerator: Accelerator, batch_size: int) -> tuple:
    torch.manual_seed(0)
    config = Config(recipe="test", width=8, depth=2, eval_batch_size=batch_size, loss="bce+dice")
    model = build_model(config, 2)
    _, test = textured_shapes(1, 37, 24)
    split = MaskSplit(test.images, masks_from_trimaps(test.trimaps, "binary", "ignore"), test.names)
    mean, std = torch.full((3,), 127.5), torch.full((3,), 73.6)
    return evaluate(accelerator, model, split, ("background", "pet"), mean, std, config)


@pytest.mark.slow
def test_scores_depend_neither_on_the_batch_size_nor_on_the_number_of_processes(tmp_path):
    ((expected, masks, dice),) = on_processes(1, functools.partial(evaluate_37, batch_size=16), tmp_path)
    assert expected["n_images"] == 37 and 0 < expected["dice"] < 1
    for n, size in ((1, 1), (2, 16), (3, 5)):
        folder = tmp_path / str(size)
        folder.mkdir(exist_ok=True)
        for metrics, other_masks, other_dice in on_processes(
            n, functools.partial(evaluate_37, batch_size=size), folder
        ):
            assert metrics == pytest.approx(expected, rel=1e-5)
            assert torch.equal(other_masks, masks) and torch.equal(other_dice, dice)


@pytest.mark.parametrize(("norm", "keeps"), [("none", True), ("batch", False)])
def test_muon_leaves_a_net_without_norms_at_the_scale_that_it_began_with(norm, keeps):
    """What goes into the last layer: rescaled filters would let it fade out, level by level."""
    torch.manual_seed(0)
    config = Config(recipe="test", width=16, depth=4, norm=norm)
    model = build_model(config, 2)
    optimizer = build_optimizer(model, config, "no")
    images, seen = torch.randn(2, 3, 32, 32), []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(float(args[0].detach().std())))
    for lr in (0.0, 0.0):
        set_lr(optimizer, lr)
        model(images).sum().backward()
        optimizer.step()
    before, after = seen
    assert after == pytest.approx(before, rel=0.1)  # a norm makes up for it
    filters = model.encoder[1][0][0].weight
    assert float(filters.detach().norm()) == pytest.approx(
        (2 if keeps else 1) ** 0.5 * len(filters) ** 0.5, rel=0.1
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_optimizer_has_every_trained_parameter_once(recipe):
    model = build_model(RECIPES[recipe][1], 2)
    groups = build_optimizer(model, RECIPES[recipe][1], "no").param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}


# --- options


@pytest.mark.figures
def test_three_classes_and_odd_sizes(train, tmp_path):
    assert train(tmp_path / "run", "--classes", "trimap", "--image_size", "37") == 0
    values = summary(tmp_path / "run")
    assert {"test/dice_background", "test/dice_pet", "test/dice_border"} <= values.keys()
    mean = np.mean([values[f"test/dice_{name}"] for name in ("background", "pet", "border")])
    assert values["test/dice"] == pytest.approx(mean)


def test_what_the_border_counts_as_is_seen_in_the_scores(train, tmp_path):
    assert train(tmp_path / "run", "--max_train_steps", "1") == 0
    pixels = {}
    for border in ("pet", "background", "ignore"):
        flags = ("--eval_only", "--resume", tmp_path / "run", "--border", border)
        assert train(tmp_path / border, *flags) == 0
        with np.load(tmp_path / border / "test_predictions.npz") as arrays:
            pixels[border] = [(arrays["true_masks"] == value).sum() for value in (0, 1, 255)]
    assert pixels["pet"][1] == pixels["background"][1] + pixels["ignore"][2] and pixels["pet"][2] == 0
    assert pixels["background"][0] == pixels["pet"][0] + pixels["ignore"][2] and pixels["ignore"][2] > 0


@pytest.mark.figures
def test_images_that_stay_on_the_host_train_the_same_to_the_bit(train, tmp_path, monkeypatch, capsys):
    flags = ("--background_mix", "0.5", "--cutmix", "0.5", "--gradient_accumulation_steps", "2")
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


def test_the_range_test_begins_at_the_size_that_the_run_begins_at(train, tmp_path, monkeypatch):
    sizes = []
    genuine = train_unet.picture_size
    monkeypatch.setattr(train_unet, "picture_size", lambda *args: sizes.append(genuine(*args)) or sizes[-1])
    flags = ("--half_size_share", "0.5", "--max_train_steps", "4", "--evaluate_every", "0")
    assert train(tmp_path / "run", *flags) == 0
    of_run, sizes[:] = [*sizes], []
    assert train(tmp_path / "run", *flags, "--find_lr") == 0
    assert sizes[:4] == of_run == [16, 16, 32, 32]


def test_sides_grow_by_a_half_three_quarters_and_the_whole():
    config = Config(recipe="test", image_size=128, half_size_share=0.5, three_quarter_size_share=0.25)
    assert [train_unet.picture_size(config, step, 8) for step in range(8)] == [64] * 4 + [96] * 2 + [128] * 2


def test_without_a_final_test_a_run_reports_its_validation_alone(train, tmp_path, monkeypatch, capsys):
    genuine, sizes = train_unet.evaluate, []

    def noted(accelerator, model, split, *args):
        sizes.append(len(split))
        return genuine(accelerator, model, split, *args)

    monkeypatch.setattr(train_unet, "evaluate", noted)
    assert train(tmp_path / "run", "--no_final_test") == 0
    assert set(sizes) == {5} and "not evaluated (--no_final_test)" in capsys.readouterr().out
    values = summary(tmp_path / "run")
    assert "best/valid/dice" in values and not any(name.startswith("test/") for name in values)
    assert (tmp_path / "run" / "figures" / "scores.png").exists()
    assert train(tmp_path / "run", "--eval_only") == 0  # later, of the run that was chosen
    assert summary(tmp_path / "run")["test/n_images"] == 21


@pytest.mark.slow
def test_compile_changes_neither_weights_nor_random_numbers(train, tmp_path):
    # muon would turn what rounding makes of tiny gradients into updates of full size
    flags = ("--max_train_steps", "3", "--depth", "1", "--log_every", "1", "--optimizer", "adamw", "--lr", "1e-3")
    assert train(tmp_path / "eager", *flags) == 0
    assert train(tmp_path / "compiled", *flags, "--compile", "--profile") == 0
    losses = [
        [line["train/loss"] for line in curve(tmp_path / name) if "train/loss" in line]
        for name in ("eager", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # in the weights, updates of one size blow rounding up
    assert summary(tmp_path / "compiled")["warm_up_seconds"] > 0


def test_bf16_trains_close_to_fp32(train, tmp_path, monkeypatch):
    assert train(tmp_path / "fp32") == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(tmp_path / "bf16") == 0
    losses = [summary(tmp_path / name)["test/loss"] for name in ("fp32", "bf16")]
    assert losses[0] == pytest.approx(losses[1], abs=0.1) and losses[0] != losses[1]


def test_a_run_that_diverges_says_so_and_exits_1(train, tmp_path, capsys):
    flags = ("--lr", "100", "--norm", "none", "--optimizer", "adamw", "--max_grad_norm", "0")
    assert train(tmp_path / "run", *flags) == 1
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()


# --- own data, and bad data


def write_pets(root: Path, n: int = 12) -> None:
    """Pictures of a light disc on dark ground, in Pet's official layout, of several sizes."""
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    for split, start in (("trainval", 0), ("test", n)):
        names = [f"{'dark_disc' if i % 3 == 2 else 'disc'}_{i}" for i in range(start, start + n)]
        for i, name in enumerate(names):
            height, width = 40 + i, 50
            distance = np.hypot(*(np.indices((height, width)) - np.array([[[20]], [[25]]])))
            trimap = np.where(distance < 12, 1, np.where(distance < 14, 3, 2)).astype(np.uint8)
            Image.fromarray(np.where(trimap == 2, 30, 200 + i).astype(np.uint8)).convert("RGB").save(
                root / "images" / f"{name}.jpg"
            )
            Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
        lines = "".join(f"{name} 1 1 1\n" for name in names)
        (root / "annotations" / f"{split}.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n" + lines)


@pytest.mark.figures
def test_own_pictures_in_the_official_layout(train, tmp_path):
    write_pets(tmp_path / "pets")
    flags = ("--data_dir", tmp_path / "pets", "--batch_size", "4", "--max_train_steps", "40")
    assert train(tmp_path / "run", *flags) == 0
    assert summary(tmp_path / "run")["test/n_images"] == 12
    assert summary(tmp_path / "run")["test/dice"] >= 0.9


def test_a_breed_that_was_never_seen_is_tested_alone(train, tmp_path, capsys):
    write_pets(tmp_path / "pets")
    flags = ("--data_dir", tmp_path / "pets", "--batch_size", "4", "--max_train_steps", "1")
    assert train(tmp_path / "run", *flags, "--unseen_breeds", "dark_disc", "--valid_fraction", "0") == 0
    assert "8 training, 0 validation and 4 test pictures" in capsys.readouterr().out
    assert summary(tmp_path / "run")["test/n_images"] == 4
    assert train(tmp_path / "other", *flags, "--unseen_breeds", "lion") == 2
    assert "there are dark_disc, disc" in capsys.readouterr().err
    assert train(tmp_path / "other", "--unseen_breeds", "disc") == 2  # of the demo's shapes
    assert "--unseen_breeds is of Pet's pictures" in capsys.readouterr().err


def write_discs(root: Path, values, picture: str = "images/p{}.jpg", mask: str = "masks/p{}.png") -> None:
    """Twelve pictures of discs, class k in its colour, whose masks hold `values[k]`."""
    for i in range(12):
        rng = np.random.default_rng(i)
        numbers, pixels = np.zeros((48, 64), int), np.full((48, 64, 3), 60, np.uint8)
        for k in range(1, len(values)):
            centre = np.array([rng.integers(10, 38), 64 * (k - 0.5) / (len(values) - 1)])
            inside = np.hypot(*(np.indices((48, 64)) - centre[:, None, None])) < 9
            numbers[inside], pixels[inside] = k, ((255, 0, 0), (0, 255, 0), (0, 0, 255))[k - 1]
        for path, array in ((picture, pixels), (mask, np.array(values, np.uint8)[numbers])):
            (root / path.format(i)).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / path.format(i))


@pytest.mark.parametrize(
    ("values", "loss", "names"),
    [
        ((0, 255), "dice", ("background", "foreground")),
        ((0, 1, 2, 3), "dice", ("0", "1", "2", "3")),
        (((0, 0, 0), (255, 255, 0), (0, 0, 255)), "bce", ("background", "#ffff00", "#0000ff")),
    ],
)
def test_own_pictures_with_masks_of_any_classes_are_learned(train, tmp_path, capsys, values, loss, names):
    write_discs(tmp_path / "discs", values)
    flags = ("--data_dir", tmp_path / "discs", "--loss", loss, "--batch_size", "64", "--max_train_steps", "60")
    assert train(tmp_path / "run", *flags) == 0
    found = summary(tmp_path / "run")
    assert {f"test/dice_{name}" for name in names} <= found.keys() and "test/dice_pet" not in found
    assert found["test/dice"] > 0.8 and found["test/n_images"] >= 2
    assert f"{len(names)} classes" in capsys.readouterr().out
    with np.load(tmp_path / "run" / "test_predictions.npz") as arrays:
        assert set(arrays["class_names"]) == set(names)


def test_own_masks_have_their_classes_and_pet_s_flags_are_refused(train, tmp_path, capsys):
    write_discs(tmp_path / "discs", (0, 1, 2), "a{}.jpg", "a{}_mask.png")
    for flags, named in (
        (("--classes", "trimap"), "--classes"),
        (("--border", "ignore"), "--border"),
        (("--unseen_breeds", "disc"), "--unseen_breeds"),
        (("--ignore_value", "256"), "--ignore_value"),
    ):
        assert train(tmp_path / "run", "--data_dir", tmp_path / "discs", *flags) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert named in line
    assert train(tmp_path / "run", "--ignore_value", "2") == 2
    assert "--ignore_value is of own masks" in capsys.readouterr().err


@pytest.mark.figures
@pytest.mark.slow
def test_the_comparison_speaks_of_the_own_classes(train, tmp_path, capsys):
    write_discs(tmp_path / "discs", (0, 255))
    (tmp_path / "discs" / "classes.txt").write_text("ground\ndisc\n")
    flags = ("--data_dir", tmp_path / "discs", "--max_train_steps", "2", "--epochs", "2")
    assert train(tmp_path / "all", *flags, recipe="all") == 0
    for name in COMPARISON:
        with Image.open(tmp_path / "all" / "figures" / f"comparison_{name}.png") as picture:
            assert min(picture.size) > 100
    text = (tmp_path / "all" / "comparison.md").read_text()
    assert "The classes are ground, disc; Dice and IoU are of disc." in text and "pet" not in text


def test_bad_data_and_flags_are_one_line_and_exit_code_2(train, tmp_path, capsys):
    write_pets(tmp_path / "pets")
    (tmp_path / "pets" / "annotations" / "trimaps" / "disc_3.png").unlink()
    (tmp_path / "empty").mkdir()
    for flags, named in (
        (("--data_dir", tmp_path / "pets"), "disc_3"),
        (("--data_dir", tmp_path / "empty"), str(tmp_path / "empty")),
        (("--scale", "-1"), "--scale"),
        (("--depth", "0"), "depth"),
        (("--width", "12", "--norm", "group"), "width"),
    ):
        assert train(tmp_path / "run", *flags) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert line.startswith("error:") and named in line
    assert not (tmp_path / "run").exists()


def test_no_side_is_halved_below_one_pixel(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--image_size", 16, "--depth", 5, "--width", 2) == 2
    assert "--depth 5 halves 16 pixels below one: give at most 4" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
    assert train(tmp_path / "run", "--image_size", 16, "--depth", 4, "--width", 2, "--max_train_steps", 1) == 0
