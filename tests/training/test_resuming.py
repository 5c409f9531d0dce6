"""A resume takes the run's own settings, and goes on at the right place of the epoch."""

import importlib
import itertools
import json
import sys
from dataclasses import dataclass, fields, replace

import pytest
import torch
from accelerate import Accelerator

from data.images.epoch_order import plan_epoch
from training.cli import run_script
from training.errors import UsageError
from training.resuming import (
    OF_THE_BATCHES,
    OF_THE_INVOCATION,
    EpochPlan,
    begin_next_epoch,
    epochs_done,
    flag_names,
    place_in_epoch,
    saved_settings,
    settings_of_run,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Config:
    recipe: str  # name
    lr: float = 0.4  # peak
    loss: str = "bce"  # what is trained on
    flip: bool = True  # mirror images
    views: tuple[tuple[int, int], ...] = ()  # of a test image
    batch_size: int = 10  # images
    gradient_accumulation_steps: int = 1  # parts
    max_train_steps: int = 0  # updates
    epochs: int = 2  # passes
    seed: int = 0  # of the order
    output_dir: str = ""  # where the run is written
    resume: str = ""  # what to go on from
    resume_changes: bool = False  # whatever that makes of it
    eval_only: bool = False  # no training
    final_test: bool = True  # with the best checkpoint
    find_lr: bool = False  # no run
    profile: bool = False  # once
    tracker: str = "none"  # where metrics go


RECIPES = {"demo": ("", Config("demo")), "large": ("", Config("large", lr=0.1, loss="dice"))}
MAY_CHANGE = flag_names("lr epochs max_train_steps views")
OWN = {
    "recipe": "demo",
    "lr": 0.2,
    "loss": "dice",
    "flip": False,
    "views": [[2, 1], [4, 3]],
    "gone": 1,
    "seed": 3,
    "batch_size": 20,
    "resume": "old",
    "tracker": "wandb",
    "find_lr": True,
}


@pytest.fixture
def run_dir(tmp_path):
    """A run with one checkpoint, whose settings are `OWN`."""
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"step": 7, "config": OWN, "script": "cifar"}))
    (checkpoint / "manifest.json").write_text("{}")
    return tmp_path / "run"


@pytest.fixture
def resume(run_dir, monkeypatch):
    """resume("--lr", "1") -> the settings that a script goes on with."""

    def run(*flags, recipe="demo", resume="latest", script="cifar") -> Config | int:
        args = [recipe, "--output_dir", str(run_dir), *(["--resume", resume] if resume else []), *flags]
        monkeypatch.setattr(sys, "argv", ["train.py", *args])
        found = []
        try:
            run_script(
                lambda config: found.append(settings_of_run(config, RECIPES, MAY_CHANGE, script)), RECIPES, ""
            )
        except SystemExit as end:
            return end.code
        return found[0]

    return run


def test_without_flags_the_settings_are_the_runs_own_in_their_own_types(resume, run_dir, capsys):
    settings = resume()
    assert (settings.lr, settings.loss, settings.flip, settings.views) == (0.2, "dice", False, ((2, 1), (4, 3)))
    assert (settings.resume, settings.tracker, settings.find_lr) == ("latest", "none", False)  # of this command
    assert settings.epochs == 2  # is new since
    assert capsys.readouterr().out == ""
    for path in (run_dir, run_dir / "checkpoints" / "checkpoint-7"):
        assert resume(resume=str(path)).lr == 0.2
    assert resume("--eval_only", resume="").lr == 0.2


def test_flags_that_are_given_override_and_are_named_a_line_each(resume, capsys):
    settings = resume("--lr", "0.4", "--views", "1", "1", "--batch_size=20", "--max-train-steps", "9")
    assert (settings.lr, settings.views, settings.max_train_steps) == (
        0.4,
        ((1, 1),),
        9,
    )  # 0.4: as the recipe has it
    shown = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "--lr 0.4 instead of the run's 0.2",
        "--views 1 1 instead of the run's 2 1 4 3",
        "--max_train_steps 9 instead of the run's 0",
    ]


@pytest.mark.parametrize(
    "flags, was, now",
    [
        (("--loss", "bce"), "--loss dice", "--loss bce"),
        (("--flip",), "--no_flip", "--flip"),
        (("--seed", "0"), "--seed 3", "--seed 0"),
    ],
)
def test_what_makes_it_another_run_is_refused_unless_the_user_insists(resume, capsys, flags, was, now):
    assert resume(*flags) == 2
    shown = capsys.readouterr().err
    assert f"trained with {was}" in shown and now in shown and "--resume_changes" in shown
    assert shown.count("\n") == 1
    resume(*flags, "--resume_changes")
    assert f"{now} instead of the run's" in capsys.readouterr().out
    assert isinstance(resume(*flags, "--eval_only"), Config)  # nothing is trained


def test_another_recipe_is_refused_and_else_asks_for_all_of_its_settings(resume, capsys):
    assert resume(recipe="large") == 2
    assert "recipe demo, not large" in capsys.readouterr().err
    settings = resume("--resume_changes", recipe="large")
    assert replace(settings, output_dir="", resume="", resume_changes=False) == RECIPES["large"][1]
    assert "--lr 0.1 instead of the run's 0.2" in capsys.readouterr().out


def test_another_script_and_nothing_to_resume(resume, run_dir, tmp_path, capsys):
    assert resume(script="unet") == 2
    assert "another script, train_cifar.py" in capsys.readouterr().err
    assert resume("--output_dir", str(tmp_path / "new")).lr == 0.4  # latest of nothing starts anew
    assert resume(resume=str(tmp_path / "new")) == 2


def test_called_without_a_command_line_what_differs_from_the_recipe_is_asked_for(run_dir):
    config = Config("demo", lr=0.7, output_dir=str(run_dir), resume="latest")
    settings = settings_of_run(config, RECIPES, MAY_CHANGE, "cifar")
    assert (settings.lr, settings.loss) == (0.7, "dice")


def test_what_held_before_a_field_was_there(run_dir):
    config = Config("demo", output_dir=str(run_dir), resume="latest")
    assert settings_of_run(config, RECIPES, MAY_CHANGE, "cifar", {"epochs": 9, "lr": 9.0}).epochs == 9
    assert saved_settings(Config, {"recipe": "x", "views": [[1, 2]]}).views == ((1, 2),)


@pytest.mark.parametrize("name", ["train_cifar", "train_cvae", "train_translation", "train_unet"])
def test_what_may_change_are_flags_of_the_script_and_of_no_other_kind(name):
    """A flag that is not among them makes another run: so is a new one, until it is known to be harmless."""
    script = importlib.import_module(name)
    names = {field.name for field in fields(script.Config)}
    assert names >= script.MAY_CHANGE | OF_THE_INVOCATION
    assert not script.MAY_CHANGE & (OF_THE_INVOCATION | OF_THE_BATCHES) and not OF_THE_INVOCATION & OF_THE_BATCHES
    assert {"seed", "model", "dataset", "loss", "valid_fraction"}.isdisjoint(script.MAY_CHANGE)


# --- the place in the epoch


def at(step: int, plan: EpochPlan, **more) -> dict:
    epoch, updates = divmod(step, plan.n_updates)
    if step and updates == 0:  # as the loop saves it
        epoch, updates = epoch - 1, plan.n_updates
    return {
        "step": step,
        "epoch": epoch,
        "updates_in_epoch": updates,
        "updates_of_epoch": plan.n_updates,
        "seen_before": 0,
        "extra_steps": 0,
        "plan": vars(plan).copy(),
        **more,
    }


def plan_of(size: int, n: int = 103, seed: int = 0, batching: str = "shuffled") -> EpochPlan:
    return EpochPlan(size, n, -(-n // size), seed, batching)


def go_on(state, plan, path, **options) -> int:
    """The updates of the whole run."""
    return place_in_epoch(Accelerator(cpu=True), Config("demo", **options), state, plan, path, "images")


def shown_by(state: dict, plan: EpochPlan, n_updates: int) -> list[int]:
    """What the loops train on, which this follows line by line: the next `n_updates` updates."""
    ids = []
    while True:
        updates = plan_epoch(
            plan.n_examples, plan.update_size, plan.seed, state["epoch"], CPU, state["seen_before"]
        )
        state["updates_of_epoch"] = len(updates)
        for update in updates[state["updates_in_epoch"] :]:
            if n_updates == 0:
                return ids
            ids += update.tolist()
            n_updates -= 1
            state["step"] += 1
            state["updates_in_epoch"] += 1
        if n_updates == 0:
            return ids
        begin_next_epoch(state)


@pytest.mark.parametrize("sizes", [(10, 25), (25, 10), (10, 25, 7), (40, 3, 103)])
def test_the_epoch_goes_on_where_it_stood_with_updates_of_another_size(fresh_accelerate, tmp_path, capsys, sizes):
    plans = [plan_of(size) for size in sizes]
    state = {"step": 0, "epoch": 0, "updates_in_epoch": 0}
    go_on(state, plans[0], None)
    ids = shown_by(state, plans[0], 2)
    for before, plan in itertools.pairwise(plans):
        assert epochs_done(state) == pytest.approx(len(ids) / 103, abs=0.02)
        go_on(state, plan, tmp_path, resume_changes=True)
        said = capsys.readouterr().out
        assert f"of {plan.update_size} images instead of the run's {before.update_size}" in said
        assert f"after the {len(ids)} images" in said
        assert epochs_done(state) == pytest.approx(len(ids) / 103, abs=0.02)
        ids += shown_by(state, plan, 1)
    total = 3 * plans[-1].n_updates + state["extra_steps"]  # --epochs 3
    ids += shown_by(state, plans[-1], total - state["step"])
    assert epochs_done(state) == 3
    for epoch in range(3):
        assert sorted(ids[103 * epoch : 103 * (epoch + 1)]) == list(
            range(103)
        )  # each once: none skipped or repeated
    go_on(state, plans[-1], tmp_path)  # with the same ones nothing changes
    assert 3 * plans[-1].n_updates + state["extra_steps"] == total


def test_in_the_middle_of_an_epoch_it_needs_to_be_asked_for(fresh_accelerate, tmp_path):
    state = at(3, plan_of(10))
    before = json.dumps(state)
    with pytest.raises(
        UsageError, match=r"middle of an epoch.*25 images instead of the run's 10.*--resume_changes"
    ):
        go_on(state, plan_of(25), tmp_path)
    assert json.dumps(state) == before
    go_on(state, plan_of(25), tmp_path, eval_only=True)
    go_on(state, plan_of(25), tmp_path, max_train_steps=3)  # nothing is left to train
    assert epochs_done(state) == pytest.approx(3 / 11)


def test_what_updates_of_another_size_have_shown_is_not_shown_again_by_those_of_a_third(fresh_accelerate, tmp_path):
    """Also where a run was saved before its first update with the second size, as one with a validation due is."""
    state = at(3, plan_of(10))
    go_on(state, plan_of(25), tmp_path, resume_changes=True)
    with pytest.raises(UsageError, match="middle of an epoch"):
        go_on(state, plan_of(7), tmp_path)
    go_on(state, plan_of(7), tmp_path, resume_changes=True)
    assert (state["epoch"], state["updates_in_epoch"], state["seen_before"]) == (0, 0, 30)
    left = shown_by(state, plan_of(7), 11)
    assert len(left) == 73 and epochs_done(state) == 1


@pytest.mark.parametrize("done", [0, 11, 22])
def test_between_epochs_it_is_only_said(fresh_accelerate, tmp_path, capsys, done):
    state = at(done, plan_of(10))
    go_on(state, plan_of(25), tmp_path)
    assert f"from epoch {done // 11 + 1} on" in capsys.readouterr().out
    assert state["updates_in_epoch"] == 0 and state["epoch"] == done // 11
    assert 4 * 5 + state["extra_steps"] == done + (4 - done // 11) * 5  # --epochs 4


@pytest.mark.parametrize(
    "before, plan",
    [
        (plan_of(10), plan_of(10, seed=1)),
        (plan_of(10), plan_of(10, n=90)),
        (plan_of(10, batching="bucketed"), plan_of(25, batching="bucketed")),
        (plan_of(10, batching="sorted"), plan_of(10, batching="bucketed")),
    ],
)
def test_an_epoch_in_another_order_begins_anew_and_says_so(fresh_accelerate, tmp_path, capsys, before, plan):
    state = at(14, before)
    go_on(state, plan, tmp_path, resume_changes=True)
    assert "epoch 2 begins anew" in capsys.readouterr().out
    assert (state["epoch"], state["updates_in_epoch"], state["seen_before"]) == (1, 0, 0)
    assert 2 * plan.n_updates + state["extra_steps"] == 14 + plan.n_updates


def test_a_checkpoint_of_before_plans_were_kept(fresh_accelerate, tmp_path):
    saved = {"batch_size": 5, "gradient_accumulation_steps": 1, "seed": 0}
    for name in ("random_states_0.pkl", "random_states_1.pkl"):
        (tmp_path / name).write_text("")
    state = {"step": 3, "epoch": 0, "updates_in_epoch": 3, "config": saved}
    go_on(state, plan_of(10), tmp_path)  # two processes of 5
    assert state["updates_in_epoch"] == 3 and state["extra_steps"] == 0
    with pytest.raises(UsageError, match="middle of an epoch"):
        go_on({"step": 3, "epoch": 0, "updates_in_epoch": 3, "config": saved}, plan_of(20), tmp_path)
