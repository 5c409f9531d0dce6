"""What is due when, and what a resume goes on with: a run of a tiny model, with the loop as the scripts have it."""

import itertools
import json
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from run_folders import Killed, curve
from torch.nn import functional as F

from training.checkpoints import (
    damage,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    mean_weights,
    read_state,
    step_of,
)
from training.errors import TrainingDiverged
from training.loop import Loop
from training.metrics import better_by
from training.resuming import EpochPlan, place_in_epoch
from training.run import Run, RunConfig

N_EXAMPLES, UPDATE_SIZE, UPDATES = 10, 2, 5  # an epoch: UPDATES updates of UPDATE_SIZE examples


@dataclass(frozen=True)
class Config(RunConfig):
    epochs: int = 2
    max_train_steps: int = 0


@dataclass
class Trial:
    """One call of the loop: what happens in it from outside, and afterwards what happened, in its order."""

    kill_at: int | None = None  # step before whose update the run is killed
    signal_at: int | None = None  # step after whose update SIGTERM comes
    skip: tuple[int, ...] = ()  # tries at an update, counted from 0, in which fp16 overflows
    accuracy: Callable[[int], float] = float  # of a validation after so many updates
    loss: Callable[[int], float] | None = None  # instead of the model's
    latest: Callable[[int], dict] = lambda step: {}  # what else is given of an update
    events: list[str] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)  # example numbers, of real updates
    loop: Loop | None = None

    def steps(self, what: str) -> list[int]:
        """The steps at which it happened."""
        return [int(event.split()[1]) for event in self.events if event.startswith(what)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for clock(seconds)."""
    now = [100.0]
    monkeypatch.setattr("training.log_window.time.perf_counter", lambda: now[0])

    def move_on(seconds: float) -> None:
        now[0] += seconds

    return move_on


@pytest.fixture
def train(fresh_accelerate, monkeypatch, clock):
    """train(folder, trial, resume=True, validate_every=3, log_every=1) -> the trial, with what happened."""
    monkeypatch.setattr("training.run.git_commit", lambda: None)
    overflows = [False]
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: overflows[0]))

    def run(folder: Path, trial: Trial | None = None, *, resume: bool = False, **options) -> Trial:
        trial = trial or Trial()
        fresh_accelerate()
        own = {name: options.pop(name) for name in list(options) if name in Config.__dataclass_fields__}
        options.setdefault("validates", True)
        config = Config(recipe="demo", output_dir=str(folder), tracker="none", **own)
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        data = torch.randn(N_EXAMPLES, 3)
        state = {"step": 0, "epoch": 0, "updates_in_epoch": 0}
        checkpoint = find_checkpoint("latest", folder) if resume or config.eval_only else None
        if checkpoint:
            state = load_checkpoint(accelerator, model, checkpoint)

        def plan(epoch: int, seen: int = 0) -> tuple[torch.Tensor, ...]:
            order = torch.randperm(N_EXAMPLES, generator=torch.Generator().manual_seed(epoch))
            return order[seen:].split(UPDATE_SIZE)

        epoch_plan = EpochPlan(UPDATE_SIZE, N_EXAMPLES, UPDATES, seed=0)
        total_steps = place_in_epoch(accelerator, config, state, epoch_plan, checkpoint, "images")
        tries = itertools.count()

        def train_update(ids: torch.Tensor, step: int, lr: float):
            if step == trial.kill_at:
                raise Killed
            for group in optimizer.param_groups:
                group["lr"] = lr
            overflows[0] = next(tries) in trial.skip
            clock(1.0)
            loss = F.mse_loss(model(data[ids])[:, 0], data[ids, 0], reduction="sum")
            accelerator.backward(loss / len(ids))
            if not overflows[0]:
                optimizer.step()
                trial.shown += ids.tolist()
            optimizer.zero_grad()
            trial.events.append(f"{'skip' if overflows[0] else 'update'} {step}")
            if step + 1 == trial.signal_at:
                signal.raise_signal(signal.SIGTERM)
            value = torch.tensor(trial.loss(step)) if trial.loss else loss
            return {"loss": value.detach(), "twice": 2 * value.detach()}, torch.tensor(1.5)

        run = Run(accelerator, "loop", config, checkpoint, state)
        loop = trial.loop = Loop(
            run,
            model,
            None,
            state,
            plan,
            total_steps=total_steps,
            unit="images",
            files={"note.txt": "x"},
            **options,
        )
        loop.warm_up(optimizer, train_update)
        for ids in loop:
            if loop.due("validate"):
                clock(1000.0)
                trial.events.append(f"validate {loop.step}")
                loop.log_validation({"accuracy": trial.accuracy(loop.step)}, better_by("accuracy"))
            if loop.due("save"):
                clock(1000.0)
                trial.events.append(f"save {loop.step}")
                loop.save()
            if loop.last:
                break
            lr = 0.1 * (1 - loop.step / total_steps)
            sums, gradient_norm = train_update(ids, loop.step, lr)
            loop.count(sums, len(ids), gradient_norm, lr, **trial.latest(loop.step))
        run.finish(loop.summary(), loop.train_seconds, model)
        return trial

    return run


def epochs(n: int) -> list[int]:
    return [UPDATES * (i + 1) for i in range(n)]


# --- what is due when


def test_after_each_epoch_it_validates_then_saves_and_after_the_last_no_second_time(train, tmp_path):
    trial = train(tmp_path)
    updates = [f"update {step}" for step in range(10)]
    assert trial.events == [*updates[:5], "validate 5", "save 5", *updates[5:], "validate 10", "save 10"]
    assert sorted(trial.shown[:10]) == sorted(trial.shown[10:]) == list(range(10))
    assert trial.loop.last and trial.loop.epochs_done == 2
    assert (trial.loop.last_checkpoint / "note.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("options", "validations"),
    [
        ({"validate_every": 3}, [3, 6, 9, 10]),
        ({"validate_every": 5}, [5, 10]),
        ({"validate_every": 100}, [10]),
        ({"validate_every_epochs": 2, "epochs": 5}, [10, 20, 25]),
        ({"validate_every_epochs": 0}, [10]),  # only at the end
        ({"max_train_steps": 7}, [5, 7]),
        ({"validate_every": 3, "validate_every_epochs": 0}, [3, 6, 9, 10]),
        ({"validates": False}, []),
    ],
)
def test_validations_are_due_by_updates_or_epochs_and_at_the_end(train, tmp_path, options, validations):
    assert train(tmp_path, **options).steps("validate") == validations


@pytest.mark.parametrize(
    ("options", "saves"),
    [
        ({"validate_every": 3}, [3, 6, 9, 10]),  # after each validation
        ({"checkpointing_steps": 4}, [4, 5, 8, 10]),  # 5: the best so far
        ({"checkpointing_steps": 4, "validates": False}, [4, 8, 10]),
        ({"validates": False}, [5, 10]),  # where it would validate if it did
        ({"validates": False, "validate_every": 4}, [4, 8, 10]),
        ({"validates": False, "validate_every_epochs": 0}, [10]),
    ],
)
def test_checkpoints_are_due_by_updates_or_with_validations_and_at_the_end(train, tmp_path, options, saves):
    trial = train(tmp_path, Trial(accuracy=lambda step: 0.5), **options)
    assert trial.steps("save") == saves


def test_the_checkpoints_of_the_last_validations_stay_over_a_resume_too(train, tmp_path):
    options = {"validate_every": 3, "validations_kept": 3, "checkpoints_total_limit": 1}
    accuracy = {"accuracy": lambda step: 1 / step}  # the first is the best
    train(tmp_path / "whole", Trial(**accuracy), **options)
    with pytest.raises(SystemExit):  # which saves at 8, and that is no validation
        train(tmp_path / "stopped", Trial(signal_at=8, **accuracy), **options)
    train(tmp_path / "stopped", Trial(**accuracy), resume=True, **options)
    for folder in ("whole", "stopped"):
        saved = {path.name for path in (tmp_path / folder / "checkpoints").iterdir()}
        assert saved == {f"checkpoint-{step}" for step in (3, 6, 9, 10)}


@pytest.mark.parametrize("accuracy, is_kept", [(0.8, True), (0.6, False)])
def test_a_mean_of_weights_is_kept_where_it_is_the_best(train, tmp_path, accuracy, is_kept):
    trial = train(tmp_path, Trial(accuracy=lambda step: 0.7 if step == 5 else 0.5), validations_kept=2)
    assert [path.name for path in trial.loop.checkpoints_kept] == ["checkpoint-5", "checkpoint-10"]
    seconds = trial.loop.train_seconds
    mean = mean_weights(trial.loop.checkpoints_kept)
    assert trial.loop.offer_mean(mean, {"accuracy": accuracy}, better_by("accuracy")) == is_kept
    tested = trial.loop.checkpoint_to_test
    assert tested.name == ("checkpoint-10" if is_kept else "checkpoint-5")
    assert (tested / "mean.safetensors").exists() == is_kept and damage(tested) is None
    assert trial.loop.best == {"step": 10 if is_kept else 5, "valid/accuracy": accuracy if is_kept else 0.7}
    assert curve(tmp_path)[-1]["valid_mean/accuracy"] == accuracy
    assert trial.loop.train_seconds == seconds


def test_log_lines_are_due_by_updates_and_at_the_end(train, tmp_path):
    train(tmp_path, log_every=4, validates=False)
    assert [(line["step"], line["epoch"]) for line in curve(tmp_path)] == [(4, 0.8), (8, 1.6), (10, 2)]
    last = curve(tmp_path)[-1]
    assert last["train/twice"] == pytest.approx(2 * last["train/loss"])
    assert last["lr"] == pytest.approx(0.1 * (1 - 9 / 10)) and last["train/gradient_norm"] == 1.5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/images_per_second"] for line in lines] == [2, 2, 2]  # two images, a second


def test_what_else_is_given_by_name_is_logged_as_it_was_in_the_last_update(train, tmp_path):
    train(tmp_path, Trial(latest=lambda step: {"kl_weight": step / 8, "norm": torch.tensor(step)}), log_every=4)
    given = [(line["train/kl_weight"], line["train/norm"]) for line in curve(tmp_path) if "train/norm" in line]
    assert given == [(3 / 8, 3), (7 / 8, 7), (9 / 8, 9)]


def test_out_of_patience_it_says_so_saves_and_ends(train, tmp_path, capsys):
    values = {5: 0.5, 10: 0.7, 15: 0.7, 20: 0.6}  # of which a tie is no new best
    trial = train(tmp_path, Trial(accuracy=values.get), patience=2, epochs=9)
    assert trial.steps("validate") == trial.steps("save") == [5, 10, 15, 20]
    assert trial.steps("update")[-1] == 19 and trial.loop.last
    assert "no validation since step 10 was better; training ends at step 20 of 45" in capsys.readouterr().out
    again = train(tmp_path, patience=2, epochs=9, resume=True)
    assert again.events == []


def test_evaluating_only_trains_validates_and_writes_nothing(train, tmp_path):
    train(tmp_path, log_every=2)
    before = curve(tmp_path)
    trial = train(tmp_path, eval_only=True)
    assert trial.events == [] and curve(tmp_path) == before
    assert trial.loop.checkpoint_to_test.name == "checkpoint-10"


def test_a_run_that_is_only_evaluated_with_updates_of_another_size_keeps_its_place(train, tmp_path, monkeypatch):
    trained = train(tmp_path / "run", max_train_steps=7)
    monkeypatch.setitem(globals(), "UPDATE_SIZE", 5)
    evaluated = train(tmp_path / "run", eval_only=True)
    assert evaluated.loop.epochs_done == trained.loop.epochs_done == pytest.approx(1.4)


def test_a_finished_run_that_is_resumed_does_nothing_anew(train, tmp_path):
    train(tmp_path)
    trial = train(tmp_path, resume=True)
    assert trial.events == [] and trial.loop.checkpoint_to_test.name == "checkpoint-10"
    more = train(tmp_path, epochs=3, resume=True)
    assert more.steps("update") == [10, 11, 12, 13, 14] and more.steps("validate") == [15]


# --- the best


def test_the_best_is_kept_named_and_tested(train, tmp_path):
    values = {5: 0.5, 10: 0.9, 15: 0.6, 20: 0.9}
    trial = train(tmp_path, Trial(accuracy=values.get), epochs=4, checkpoints_total_limit=1)
    assert trial.loop.best == {"step": 10, "valid/accuracy": 0.9}
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [10, 20]
    assert trial.loop.checkpoint_to_test.name == "checkpoint-10"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["best/step"], summary["best/valid/accuracy"]) == (10, 0.9)
    assert [line["valid/accuracy"] for line in curve(tmp_path) if "valid/accuracy" in line] == [0.5, 0.9, 0.6, 0.9]


def test_a_new_best_is_saved_also_where_no_checkpoint_is_due(train, tmp_path):
    values = {3: 0.5, 6: 0.9, 9: 0.6, 10: 0.6}
    trial = train(tmp_path, Trial(accuracy=values.get), validate_every=3, checkpointing_steps=100)
    assert trial.steps("save") == [3, 6, 10] and trial.loop.checkpoint_to_test.name == "checkpoint-6"


def test_without_validation_the_last_weights_are_tested(train, tmp_path):
    trial = train(tmp_path, validates=False)
    assert trial.loop.best is None and trial.loop.checkpoint_to_test.name == "checkpoint-10"
    assert "best/step" not in json.loads((tmp_path / "summary.json").read_text())


# --- resuming


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("killed", [2, 4, 5, 6, 9])
def test_a_killed_and_resumed_run_repeats_nothing_and_ends_like_one_never_killed(train, tmp_path, every, killed):
    options = {"checkpointing_steps": every, "log_every": 4}
    whole = train(tmp_path / "whole", **options)
    first, second = Trial(kill_at=killed), Trial()
    with pytest.raises(Killed):
        train(tmp_path / "killed", first, **options)
    train(tmp_path / "killed", second, resume=True, **options)
    begun_at = max([0, *first.steps("save")])
    assert second.steps("update") == list(range(begun_at, 10))
    assert first.shown[: UPDATE_SIZE * begun_at] + second.shown == whole.shown
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for name in ("model.safetensors", "note.txt"):
        path = Path("checkpoints") / "checkpoint-10" / name
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    assert second.loop.train_seconds == whole.loop.train_seconds == 10  # the clock's, over both


def test_a_kill_between_a_validation_and_its_checkpoint_loses_neither(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Loop, "save", lambda self: (_ for _ in ()).throw(Killed()))
        train(tmp_path)
    trial = train(tmp_path, resume=True)  # of nothing
    assert trial.steps("validate") == [5, 10] and trial.steps("update") == list(range(10))


# --- signals


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_signal_saves_and_ends_at_the_update_it_comes_in(train, tmp_path, at):
    first = Trial(signal_at=at)
    with pytest.raises(SystemExit) as end:
        train(tmp_path / "run", first)
    assert end.value.code == 143
    assert first.steps("update")[-1] == at - 1 and first.steps("save")[-1] == at
    second = train(tmp_path / "run", resume=True)
    whole = train(tmp_path / "whole")
    assert first.shown + second.shown == whole.shown
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_an_average_in_shards_is_made_whole_where_something_is_due(train, tmp_path):
    loop, gathered = train(tmp_path).loop, []
    loop.ema = SimpleNamespace(gather=lambda: gathered.append(True))
    assert not loop.due("validate") and not loop.due("save") and not gathered
    loop._checkpoint_is_due = True
    assert loop.due("save") and gathered == [True]


def test_processes_agree_on_a_signal_at_each_log_line_and_each_twentieth_update(train, tmp_path, monkeypatch):
    agreed = []

    def noted(run, agree: bool) -> bool:
        agreed.append(agree)
        return False

    monkeypatch.setattr("training.run.Run.stop_requested", noted)
    train(tmp_path, epochs=9, log_every=15)
    assert [i for i, agree in enumerate(agreed, 1) if agree] == [15, 20, 30, 40, 45]


@pytest.mark.parametrize("at", [5, 10])
def test_a_validation_that_is_due_at_a_signal_waits_for_the_resume(train, tmp_path, at):
    first = Trial(signal_at=at)
    with pytest.raises(SystemExit):
        train(tmp_path / "run", first)
    assert first.events[-2:] == [f"update {at - 1}", f"save {at}"] and at not in first.steps("validate")
    second = train(tmp_path / "run", resume=True)
    assert second.events[:2] == [f"validate {at}", f"save {at}"]  # before any update, and once
    assert first.steps("validate") + second.steps("validate") == [5, 10]
    train(tmp_path / "whole")
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert second.loop.best["step"] == 10


def test_a_validation_that_was_due_is_not_made_of_a_split_that_is_gone(train, tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Trial(signal_at=5))
    trial = train(tmp_path, resume=True, validates=False)
    assert trial.steps("validate") == [] and trial.steps("update") == [5, 6, 7, 8, 9]


def test_evaluating_what_a_signal_left_makes_no_validation(train, tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Trial(signal_at=5))
    assert train(tmp_path, eval_only=True).events == []


# --- fp16


def test_an_overflow_is_no_update_but_shows_its_examples(train, tmp_path):
    trial = train(tmp_path, Trial(skip=(1, 7)), log_every=1)
    assert trial.events[:4] == ["update 0", "skip 1", "update 1", "update 2"]
    assert trial.loop.step == 8 and trial.loop.epochs_done == 2  # the plan's end ends the loop
    assert [line["step"] for line in curve(tmp_path) if "train/loss" in line] == list(range(1, 9))


def test_an_epoch_whose_last_update_overflows_is_validated_and_saved(train, tmp_path):
    trial = train(tmp_path, Trial(skip=(4,)))
    assert trial.events[4:7] == ["skip 4", "validate 4", "save 4"]
    assert trial.steps("validate") == trial.steps("save") == [4, 9]


def test_a_run_whose_last_update_overflows_ends_with_its_log_line_validation_and_checkpoint(train, tmp_path):
    trial = train(tmp_path, Trial(skip=(9,)), log_every=4)
    assert trial.events[-3:] == ["skip 9", "validate 9", "save 9"]
    assert [line["step"] for line in curve(tmp_path) if "train/loss" in line] == [4, 8, 9]


@pytest.mark.parametrize("skip", [(9,), (8, 9)])
def test_the_same_weights_are_validated_once(train, tmp_path, skip):
    """What is due by updates is due at step 8 or 9; the last round is at the same step then."""
    every = 10 - len(skip)
    trial = train(tmp_path, Trial(skip=skip, accuracy=lambda step: 0.5), validate_every=every, patience=2)
    assert trial.steps("validate") == [every]
    assert trial.loop.state["validations_since_best"] == 0
    assert trial.loop.last_checkpoint.name == f"checkpoint-{every}"


def test_overflows_count_over_a_resume(train, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Trial(skip=(1,), kill_at=6), checkpointing_steps=1)
    trial = train(tmp_path, resume=True, checkpointing_steps=1)
    assert trial.steps("update") == [6, 7, 8] and trial.loop.epochs_done == 2


# --- the clock, divergence, old checkpoints, compilation


def test_the_clock_stands_still_while_it_validates_and_saves(train, tmp_path):
    trial = train(tmp_path, validate_every=2, checkpointing_steps=3)
    assert trial.loop.train_seconds == 10
    assert json.loads((tmp_path / "summary.json").read_text())["train_seconds"] == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_diverges_saves_nothing_of_it(train, tmp_path, bad):
    trial = Trial(loss=lambda step: bad if step == 7 else 1.0)
    with pytest.raises(TrainingDiverged, match=r"at step 8; the last good checkpoint is .*checkpoint-5"):
        train(tmp_path, trial)
    assert trial.steps("save") == [5] and trial.steps("validate") == [5]


def test_a_checkpoint_of_before_names_and_skips_were_kept_is_resumed(train, tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Trial(signal_at=7))
    (checkpoint,) = [path for path in list_checkpoints(tmp_path) if step_of(path) == 7]
    state = read_state(checkpoint)
    for name in ("skipped", "validated_at", "validation_is_due"):
        del state[name]
    del state["window"]["names"]
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state))
    del manifest["state.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    trial = train(tmp_path, resume=True)
    assert trial.steps("update") == [7, 8, 9] and trial.steps("validate") == [10]
    assert trial.loop.train_seconds == 10


def test_warming_up_tries_the_first_and_the_last_update_and_leaves_no_trace(train, tmp_path):
    trial = train(tmp_path / "compiled", compile=True)
    plain = train(tmp_path / "plain")
    assert trial.steps("update")[:4] == [0, 9, 0, 9]  # as of the first step and of the last, before the clock runs
    assert trial.events[4:] == plain.events
    assert curve(tmp_path / "compiled") == curve(tmp_path / "plain")
    assert trial.loop.train_seconds == 10 and trial.loop.summary()["warm_up_seconds"] >= 0
    assert "warm_up_seconds" not in plain.loop.summary()
    assert train(tmp_path / "compiled", compile=True, resume=True).events == []  # nothing is left to train


def test_the_settings_in_a_checkpoint_hold_no_secret(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-word-of-the-path")
    train(tmp_path / "a-word-of-the-path")
    state = read_state(find_checkpoint("latest", tmp_path / "a-word-of-the-path"))
    assert state["config"]["output_dir"] == str(tmp_path / "***")
