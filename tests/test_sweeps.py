"""A trial of each sweep, started as W&B's agent starts it, and what the sweep and the dashboard ask of it."""

import importlib
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
import yaml
from offline_runs import OfflineRun
from wandb import wandb_agent

from data.images.drawn_digits import drawn_digits
from data.images.drawn_shapes import drawn_shapes
from data.images.textured_shapes import textured_shapes
from data.text.phrasebook import phrasebook_splits
from tools.dashboard import EVERY_SCRIPT, SCRIPTS, SPEED, VIEWS, build
from training.cli import run_script
from training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "sweeps").glob("*.yaml")}
TINY = {
    "translation": "--d_model 16 --n_heads 2 --d_ff 16 --n_encoder_layers 1 --n_decoder_layers 1 --max_tokens 256 "
    "--vocab_size 400 --valid_sentences 4 --test_sentences 4 --beam_size 2 --final_test",
    "unet": "--width 8 --depth 2 --image_size 32 --batch_size 10 --views mirror",
    "cvae": "--latent_dim 4 --width 16 --batch_size 20 --iw_samples 2",
    "cifar": "--speednet_widths 8 16 16 --batch_size 20",
}
RUN_ID = "ab12cd34"


def trial(sweep: dict[str, Any], which: int) -> dict[str, dict[str, Any]]:
    """The first (0) or last (-1) of each parameter's values, as W&B's server hands them to an agent."""
    values = {}
    for name, parameter in sweep["parameters"].items():
        bounds = [parameter["min"], parameter["max"]] if "min" in parameter else None
        choices = parameter.get("values") or bounds or [parameter["value"]]
        values[name] = {"value": choices[which]}
    return values


def command_of_agent(sweep: dict[str, Any], which: int, folder: Path, monkeypatch) -> list[str]:
    """The arguments that `python` is called with by the command that W&B's agent runs."""
    (folder / "bin").mkdir()
    stub = folder / "bin" / "python"
    stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stub.chmod(0o755)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them: to be undone
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RECIPE", "demo")
    monkeypatch.chdir(folder)
    started = {}
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **asked: started.update(asked) or SimpleNamespace())
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._in_jupyter, agent._function = list(sweep["command"]), False, None
    agent._forward_signals, agent._run_processes = False, {}
    agent._command_run({"run_id": RUN_ID, "program": sweep["program"], "args": trial(sweep, which)})
    environment = started["env"] | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(started["command"], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.fixture
def fresh_wandb():
    """W&B reads the environment, in which an agent names the trial, once a process."""
    wandb.teardown()
    yield
    wandb.teardown()


def flags_of_few_data(monkeypatch, script: str, folder: Path) -> list[str]:
    """Have the demo's data drawn in small; flags where they come from files."""
    module = importlib.import_module(f"train_{script}")
    if script == "translation":
        pairs = phrasebook_splits()[0][::60][:400]
        for side, name in enumerate(("en", "it")):
            (folder / name).write_text("".join(pair[side] + "\n" for pair in pairs), encoding="utf-8")
        return ["--train_files", "en", "it"]
    if script == "cifar":
        monkeypatch.setattr(module, "drawn_shapes", partial(drawn_shapes, n_train=500, n_test=50))
    elif script == "unet":
        monkeypatch.setattr(module, "textured_shapes", lambda image_size: textured_shapes(40, 12, image_size))
    elif script == "cvae":
        monkeypatch.setattr(module, "drawn_digits", lambda image_size: drawn_digits(100, 42, image_size))
        always_one = lambda images: torch.ones(len(images), dtype=torch.int64)  # noqa: E731
        monkeypatch.setattr(module, "find_judge", lambda *args: always_one)
    return []


def of_other_scripts(script: str) -> set[str]:
    others = {name for key, section in SCRIPTS.items() if key != script for name in names_of(section)}
    unit = "images" if script == "translation" else "tokens"
    return others | {f"train/{unit}_per_second"}


def names_of(section) -> set[str]:
    return {name for panel in section.curves for name in panel} | set(section.bars)


def test_each_script_has_a_sweep_that_says_what_it_asks():
    assert set(SWEEPS) == set(SCRIPTS)
    for name, sweep in SWEEPS.items():
        text = (ROOT / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8")
        assert re.match("# (Which|What|How) ", text)
        assert sweep["program"] == f"train_{name}.py"


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("script", SWEEPS)
def test_the_agents_command_is_understood_to_the_value(script, which, tmp_path, monkeypatch):
    sweep = SWEEPS[script]
    program, *args = command_of_agent(sweep, which, tmp_path, monkeypatch)
    assert program == f"train_{script}.py"
    module = importlib.import_module(f"train_{script}")
    config = importlib.import_module("training.cli").parse_config(module.RECIPES, "", args)
    assert (config.recipe, config.output_dir) == ("demo", f"runs/sweep/{RUN_ID}")
    for name, asked in trial(sweep, which).items():
        assert json.loads(json.dumps(getattr(config, name))) == asked["value"], name
    recipe = sweep["command"][2].split(":-")[1].split("}")[0]
    assert recipe in module.RECIPES


@pytest.mark.training
@pytest.mark.parametrize("script", SWEEPS)
def test_a_trial_logs_what_the_sweep_chooses_by_and_the_dashboard_shows(
    script, fresh_accelerate, fresh_wandb, tmp_path, monkeypatch, capfd
):
    program, *args = command_of_agent(SWEEPS[script], -1, tmp_path, monkeypatch)
    module = importlib.import_module(f"train_{script}")
    data = flags_of_few_data(monkeypatch, script, tmp_path)
    short = [*TINY[script].split(), *data, "--max_train_steps", "2", "--log_every", "1"]
    monkeypatch.setattr(sys, "argv", [program, *args, *short])
    run_script(module.main, module.RECIPES, "", user_errors=(module.DataError,))

    assert "locked by 'sweep'" not in capfd.readouterr().err
    run = tmp_path / "runs" / "sweep" / RUN_ID
    logged = {name for row in read_metrics(run / "metrics.jsonl") for name in row}
    summary = json.loads((run / "summary.json").read_text())
    tracked = OfflineRun(run)
    assert tracked.run.run_id == RUN_ID  # the trial's own, so that the sweep finds its metric
    assert SWEEPS[script]["metric"]["name"] in summary
    sent = {name for row in tracked.history for name in row}
    assert logged <= sent and tracked.n_system > 0
    assert {name for name, value in summary.items() if not isinstance(value, dict)} <= set(tracked.summary)

    for section in (SCRIPTS[script], EVERY_SCRIPT, SPEED):
        others = of_other_scripts(script) if section is SPEED else set()
        assert {name for panel in section.curves for name in panel} - others <= logged, section.title
        assert set(section.bars) <= summary.keys(), section.title
        assert {f"figures/{name}" for name in section.figures} | set(section.tables) <= sent, section.title
    for view in VIEWS:
        assert set(view.groups) <= tracked.config.keys(), view.title
        for column in view.columns:
            kind, name = column.split(":")
            known = tracked.config if kind == "config" else {*summary, *of_other_scripts(script)}
            assert name in known, f"{view.title}: {column}"


def test_a_view_holds_every_panel_of_its_sections():
    pytest.importorskip("wandb_workspaces")
    for view in VIEWS:
        spec = build(view, "entity")._to_model().spec.model_dump(mode="json", by_alias=True)["section"]
        shown = [set() for _ in view.sections]
        for names, section in zip(shown, spec["panelBankConfig"]["sections"], strict=True):
            for panel in section["panels"]:
                names |= set(panel["config"].get("metrics", ()))
                if panel["viewType"] == "Run History Line Plot":
                    assert panel["config"]["xAxis"] == "step"
        assert shown == [names_of(section) for section in view.sections]
