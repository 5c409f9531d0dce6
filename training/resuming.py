"""Going on from a checkpoint: with the run's own settings, and at the right place of the epoch.

Every flag of a script is one of four kinds. Those of `OF_THE_INVOCATION` are of the command that is typed, and no
setting of the run. Those of `OF_THE_BATCHES` say which examples make up an update: with others the place in the
epoch, which is counted in updates, means something else. Those that are harmless a script names beside its Config,
as `MAY_CHANGE`. All others are not: with another loss, model or data it is another run.
"""

import os
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from accelerate import Accelerator

from training.checkpoints import check_files, find_checkpoint, read_state
from training.cli import flags_given
from training.errors import UsageError
from training.run import RunConfig

C = TypeVar("C", bound=RunConfig)


def flag_names(text: str) -> frozenset[str]:
    """The names in `text`, between white space."""
    return frozenset(text.split())


OF_THE_INVOCATION = flag_names("output_dir resume resume_changes eval_only final_test find_lr profile tracker")
OF_THE_BATCHES = flag_names("batch_size gradient_accumulation_steps max_tokens batching")


# -- settings ---------------------------------------------------------------------------------------------


def settings_of_run(
    config: C,
    recipes: dict[str, tuple[str, C]],
    may_change: Set[str],
    script: str,
    old_rules: Mapping[str, Any] = MappingProxyType({}),
) -> C:
    """The settings to go on with: those of the run that `config` resumes or evaluates, and the flags given anew.

    Each of these that differs is printed. Those of `config` where there is nothing to resume. Raises UsageError for
    another recipe, and, unless only evaluating, for flags that make it another run, without `--resume_changes`.
    `old_rules` are what held in runs of before a field was there, where that is not its default.

    In any case the settings say where the run is written: runs/<script>/<recipe> where no flag names a folder.
    """
    config = replace(config, output_dir=config.output_dir or f"runs/{script}/{config.recipe}")
    if not (config.resume or config.eval_only):
        return config
    resume = config.resume or config.output_dir
    checkpoint = find_checkpoint(resume, Path(config.output_dir), prefer_best=config.eval_only)
    if checkpoint is None:
        return config
    state = read_state(checkpoint)
    if state.get("script", script) != script:
        raise UsageError(f"{checkpoint} is of another script, train_{state['script']}.py: name a run of this one")
    saved = saved_settings(type(config), {**old_rules, **state["config"]})
    given = flags_given(config, recipes)
    if saved.recipe != config.recipe:
        if not config.resume_changes:
            raise UsageError(
                f"{checkpoint} is of the recipe {saved.recipe}, not {config.recipe}: name that one, start anew in "
                "another --output_dir, or add --resume_changes"
            )
        given = frozenset(field.name for field in fields(config))  # a recipe asks for all of its settings
    taken = {name: getattr(config, name) for name in given | OF_THE_INVOCATION | {"recipe"}}
    settings = replace(saved, **taken)
    changed = [f.name for f in fields(config) if f.name not in OF_THE_INVOCATION | {"recipe"}]
    changed = [name for name in changed if getattr(settings, name) != getattr(saved, name)]
    refused = [name for name in changed if name not in may_change | OF_THE_BATCHES]
    if refused and not (config.eval_only or config.resume_changes):
        trained_with = ", ".join(_flag(name, getattr(saved, name)) for name in refused)
        now = ", ".join(_flag(name, getattr(settings, name)) for name in refused)
        raise UsageError(
            f"{checkpoint} was trained with {trained_with}, and {now} would make it another run: leave that out, "
            "start anew in another --output_dir, or add --resume_changes"
        )
    if os.environ.get("RANK", "0") == "0":
        for name in changed:
            theirs = getattr(saved, name)
            theirs = _flag(name, theirs) if isinstance(theirs, bool) else _value(theirs)
            print(f"resuming {checkpoint}: {_flag(name, getattr(settings, name))} instead of the run's {theirs}")
    return settings


def saved_settings(kind: type[C], saved: dict[str, Any]) -> C:
    """The Config that a checkpoint or config.json holds as JSON: fields that are new since have their defaults."""
    return kind(**{f.name: _tuples(saved[f.name]) for f in fields(kind) if f.name in saved})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_value(item) for item in value) or "none"
    return str(value) if value != "" else '""'


def _flag(name: str, value: Any) -> str:
    """As it is written on the command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {_value(value)}"


def checkpoint_to_resume(config: Any, files: dict[str, str], needs_files: bool = False) -> Path | None:
    """The checkpoint that `--resume` or `--eval_only` names; None where the run begins anew.

    `files` are the texts that the task keeps beside the weights, by name. Raises UsageError where the checkpoint
    holds others, for it is of other data then, unless `--resume_changes` accepts that; where the weights mean
    nothing without them (`needs_files`: a vocabulary), always.
    """
    if not (config.resume or config.eval_only):
        return None
    resume = config.resume or config.output_dir
    checkpoint = find_checkpoint(resume, Path(config.output_dir), prefer_best=config.eval_only)
    if checkpoint and (needs_files or not config.resume_changes):
        check_files(checkpoint, files)
    return checkpoint


# -- the place in the epoch -------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochPlan:
    """What decides which examples make up each update of an epoch."""

    update_size: int  # most examples, or tokens with their padding, over all processes and micro-batches
    n_examples: int
    n_updates: int  # of an epoch
    seed: int
    batching: str = "shuffled"  # then the order does not depend on update_size


def place_in_epoch(
    accelerator: Accelerator, config: Any, state: dict, plan: EpochPlan, checkpoint: Path | None, unit: str
) -> int:
    """Make `state`, of a new run or of `checkpoint`, hold the place in the epoch in updates of `plan`.

    Returns the updates that the whole run has.

    Kept in it: "epoch", "updates_in_epoch" of "updates_of_epoch", "seen_before" (the examples of this epoch that
    updates of another size have shown), and "extra_steps" (updates by which the run's number of them differs from
    epochs x updates of an epoch for that reason). What updates of another size do is printed; `unit` is what they
    are counted in. Raises UsageError where the epoch has begun with others, unless `config.resume_changes`.
    """
    before = _plan_of(state, plan, checkpoint)
    state.setdefault("seen_before", 0)
    state.setdefault("extra_steps", 0)
    state.setdefault("updates_of_epoch", before.n_updates)
    over = config.eval_only or config.find_lr or 0 < config.max_train_steps <= state["step"]
    if over or before == plan:
        state["plan"] = asdict(before)
        return _total_steps(config, state, plan)
    sizes = f"updates of {plan.update_size:,} {unit} instead of the run's {before.update_size:,}"
    if before.update_size == plan.update_size:
        sizes = "updates of other examples than the run's"
    nothing_shown = state["updates_in_epoch"] == 0 and state["seen_before"] == 0
    if nothing_shown or state["updates_in_epoch"] == state["updates_of_epoch"]:
        state["epoch"] += not nothing_shown
        seen, what_happens = 0, f"from epoch {state['epoch'] + 1} on"
    elif not config.resume_changes:
        raise UsageError(
            f"{checkpoint} stands in the middle of an epoch, which cannot go on with {sizes} (of all processes and "
            "accumulation steps): launch as many processes with the run's own flags, or add --resume_changes"
        )
    elif _same_order(before, plan):
        seen = state["seen_before"] + _examples_shown(before, state)
        what_happens = f"epoch {state['epoch'] + 1} goes on after the {seen:,} {unit} that it has shown"
    else:
        seen = 0
        what_happens = (
            f"epoch {state['epoch'] + 1} begins anew, so that what its {state['updates_in_epoch']:,} updates have "
            "shown is shown again"
        )
    left = ceil((plan.n_examples - seen) / plan.update_size) if seen else plan.n_updates
    state["extra_steps"] = state["step"] + left - (state["epoch"] + 1) * plan.n_updates
    state |= {"updates_in_epoch": 0, "updates_of_epoch": left, "seen_before": seen, "plan": asdict(plan)}
    if accelerator.is_main_process:
        print(f"resuming {checkpoint}: {sizes}: {what_happens}", flush=True)
    return _total_steps(config, state, plan)


def _total_steps(config: Any, state: dict, plan: EpochPlan) -> int:
    return config.max_train_steps or config.epochs * plan.n_updates + state["extra_steps"]


def _plan_of(state: dict, plan: EpochPlan, checkpoint: Path | None) -> EpochPlan:
    """What the updates of `state` were planned by: `plan` for a new run."""
    if checkpoint is None:
        return plan
    if "plan" in state:
        return EpochPlan(**state["plan"])
    # A checkpoint of before plans were kept: what its settings and its number of processes say of it.
    saved = state["config"]
    n_processes = len(list(checkpoint.glob("random_states_*.pkl")))
    size = saved.get("batch_size", saved.get("max_tokens")) * saved["gradient_accumulation_steps"] * n_processes
    n_updates = plan.n_updates
    if plan.batching == "shuffled":
        n_updates = ceil(plan.n_examples / size)
    batching = saved.get("batching", plan.batching)
    return replace(plan, update_size=size, n_updates=n_updates, seed=saved["seed"], batching=batching)


def _same_order(before: EpochPlan, plan: EpochPlan) -> bool:
    """Whether the epoch's examples come in the same order, and only its cuts into updates differ."""
    same_examples = (before.n_examples, before.seed) == (plan.n_examples, plan.seed)
    return before.batching == plan.batching == "shuffled" and same_examples


def _examples_shown(plan: EpochPlan, state: dict) -> int:
    """Of the updates that are done of the current plan, whose sizes differ by one at most, larger ones first."""
    small, n_larger = divmod(plan.n_examples - state["seen_before"], state["updates_of_epoch"])
    return state["updates_in_epoch"] * small + min(state["updates_in_epoch"], n_larger)


def epochs_done(state: dict) -> float:
    """Passes over the training examples so far, the begun one as a fraction."""
    before = state["seen_before"] / state["plan"]["n_examples"]
    return state["epoch"] + before + (1 - before) * state["updates_in_epoch"] / state["updates_of_epoch"]


def begin_next_epoch(state: dict) -> None:
    """After the last update of an epoch."""
    state |= {"epoch": state["epoch"] + 1, "updates_in_epoch": 0, "seen_before": 0}
