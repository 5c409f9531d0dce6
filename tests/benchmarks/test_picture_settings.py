"""The trials that are asked for can all be given to their script, and one of them is made."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_unet
from benchmarks.picture_settings import TASKS, Config, gigaflops_an_image, main, trials_of
from benchmarks.settings_trials import Trial
from training.cli import parse_config, refuse_options_of_other_models


@pytest.mark.parametrize("task", TASKS)
def test_each_setting_is_a_run_of_its_own_that_the_script_takes(task):
    script = importlib.import_module(TASKS[task].script)
    recipes = ("mp-tr-bce",) if task == "unet" else ()  # its others have the same settings
    trials = trials_of(Config(task, "out.jsonl", 1, data="data", recipes=recipes, seeds=2, flags="--epochs 3"))
    n_settings = sum(len(TASKS[task].settings[recipe]) for recipe in recipes or TASKS[task].settings)
    assert len(trials) == len({trial.flags for trial in trials}) == 2 * n_settings
    of_all = [parse_config(script.RECIPES, "", list(trial.flags)) for trial in trials[:n_settings]]
    for trial, config in zip(trials, of_all, strict=False):
        recipe, _, name = trial.name.partition(": ")
        assert config.recipe == recipe and not config.final_test and config.valid_fraction > 0
        assert (config.epochs == 3) == (" epochs" not in name)
        assert config.data_dir.endswith(f"data/{TASKS[task].data[recipe]}")
        baseline = next(c for c, t in zip(of_all, trials, strict=False) if t.name == f"{recipe}: baseline")
        assert (config == baseline) == (name == "baseline")
        if task == "cifar":
            options = {"speednet": ("speednet_widths",), "resnet": ("whitened", "activation")}
            refuse_options_of_other_models(config, script.RECIPES, options)


def test_recipes_and_variants_are_chosen_by_name(capsys):
    config = Config(
        "cifar", "out.jsonl", minutes=1, recipes=("resnet", "speedrun"), variants=("brightness, contrast",)
    )
    assert [trial.name for trial in trials_of(config)] == [
        "resnet: brightness, contrast",
        "speedrun: brightness, contrast",
    ]
    required = ["--task", "cifar", "--output", "out.jsonl", "--minutes", "1"]
    for flags, named in (
        (["--recipes", "lenet"], "resnet, ultimus, speedrun"),
        (["--variants", "dropout"], "'lookahead'"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*required, *flags])
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith("error: ") and named in line


def test_the_work_of_a_run_is_that_of_its_net():
    """airbench94's, which the recipe follows, is published as 0.36 PFLOP for 10 epochs of 50,000 images."""
    (trial,) = trials_of(Config("cifar", "out.jsonl", minutes=1, recipes=("speedrun",), variants=("10 epochs",)))
    whole = gigaflops_an_image("cifar", trial)
    assert 50_000 * whole / 1e6 == pytest.approx(0.36, abs=0.01)
    half = gigaflops_an_image("cifar", Trial("half", (*trial.flags, "--hard_share", "0.5")))
    assert 0.5 * whole < half < 0.65 * whole

    config = replace(train_unet.RECIPES["demo"][1], image_size=32, epochs=2, half_size_share=0.5)
    images = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        train_unet.build_model(config, 2)(images).sum().backward()
    flags = ("demo", "--image_size", "32", "--epochs", "2", "--half_size_share", "0.5")
    found = gigaflops_an_image("unet", Trial("demo", flags))
    assert found == pytest.approx(2 * counter.get_total_flops() * (1 + 1 / 4) / 2 / 1e9, rel=0.01)


@pytest.mark.slow
def test_a_trial_is_made_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out.jsonl"
    flags = "--max_train_steps 2 --speednet_widths 8 8 8 --batch_size 50"
    main(
        [
            *("--task", "cifar", "--recipes", "speedrun", "--minutes", "3"),
            *("--variants", "hardest half, 10 epochs"),
            *(f"--flags={flags}", "--output", str(output)),
        ]
    )
    (line,) = map(json.loads, output.read_text().splitlines())
    assert line["exit_code"] == 0 and 0 < line["valid"]["accuracy_views"] <= 1
    assert line["valid"]["n_images"] == 400 and "test" not in json.dumps(line["valid"])
    shown = capsys.readouterr().out
    assert "speedrun: hardest half" in shown and "GFLOP an image" in shown
