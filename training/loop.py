"""The bookkeeping between two updates: position in the data, what is due, log lines, the clock, signals, the end.

    loop = Loop(run, model, ema, state, plan, total_steps=total_steps, unit="images")
    for update in loop:
        if loop.due("validate"):
            loop.log_validation(evaluate(..), better_by("accuracy"))
        if loop.due("save"):
            loop.save()
        if loop.last:
            break
        lr = learning_rate(config, loop.step, loop.total_steps)
        sums, gradient_norm = train_update(.., update, .., lr)
        loop.count(sums, len(update), gradient_norm, lr)

What is due stands at the top of a round and looks back on the updates done so far, so there is one round more than
there are updates: the last validation and the last checkpoint are made where all others are.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.checkpoints import best_checkpoint, damage, list_checkpoints, save_checkpoint, step_of
from training.ema import EMA
from training.log_window import LogWindow
from training.metrics import prefixed
from training.preserved_state import preserved_state
from training.processes import raise_if_replicas_differ
from training.profiling import profiler
from training.redaction import redacted
from training.resuming import begin_next_epoch, epochs_done
from training.run import Run
from training.setup import is_sharded

AGREE_EVERY = 20  # updates after which processes on GPUs tell each other of signals, where no log line comes first


class Loop:
    """Iterate over the updates that are left; in the last round there is none, and None comes instead.

    `plan(epoch, seen)` are the updates of an epoch but for the first `seen` examples, the same whenever it is
    asked. `state` holds where the run stands (training/resuming.py): a resumed run begins in the middle of its
    epoch and repeats nothing. `unit` is what updates are counted in: "tokens" or "images".

    Where the run `validates`, validations are due after each `validate_every` updates, or, where that is 0, after
    each `validate_every_epochs` epochs (0: never), and after the last update. Checkpoints are due after each
    `config.checkpointing_steps` updates, or, where that is 0, after each validation, or whenever one would be due
    if the run validated; after a validation that found a new best; after the last update; and when a signal asks
    the run to end. Those of the last `validations_kept` validations stay. With `patience` > 0 the loop ends after
    so many validations without a new best. All processes iterate, and all call each method.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        ema: EMA | None,
        state: dict,
        plan: Callable[[int, int], Sequence[Any]],
        *,
        total_steps: int,
        unit: str,
        validates: bool = True,
        validate_every: int = 0,
        validate_every_epochs: int = 1,
        patience: int = 0,
        validations_kept: int = 0,
        files: dict[str, str] | None = None,
    ):
        self.run, self.accelerator, self.config = run, run.accelerator, run.config
        self.model, self.ema = model, ema
        self.plan, self.total_steps, self.unit = plan, total_steps, unit
        self.validates = validates
        self.validate_every, self.validate_every_epochs = validate_every, validate_every_epochs
        self.patience = patience
        self.validations_kept = validations_kept
        self.files = files or {}  # texts that each checkpoint keeps beside the weights, by name
        self.last_checkpoint: Path | None = run.checkpoint

        new = {"step": 0, "skipped": 0, "best": None, "validations_since_best": 0, "validated_at": None}
        self.state = {**new, **state}
        self.window = LogWindow(self.accelerator)
        if "window" in state:
            self.window.load(state["window"])

        self._updates: Sequence[Any] = ()
        self._gradient_norm: Tensor | float = 0.0  # of the latest update, and its rate
        self._lr = 0.0
        self._latest: dict[str, Tensor | float] = {}
        # A run that a signal ended before a validation that was due makes it when it is resumed.
        self._validation_is_due: bool = (
            self.state.get("validation_is_due", False) and validates and not self.config.eval_only
        )
        self._checkpoint_is_due = False
        self._logs = False
        self._signalled = False
        self.warm_up_seconds = 0.0

    # -- where the run stands -----------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Updates done."""
        return self.state["step"]

    @property
    def best(self) -> dict[str, float] | None:
        """The values of the best validation so far, and its "step"."""
        return self.state["best"]

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.patience <= self.state["validations_since_best"]

    @property
    def last(self) -> bool:
        """Whether no update is left: all are done, or the run is out of patience, or it only evaluates."""
        all_tried = self.step + self.state["skipped"] >= self.total_steps
        return self.config.eval_only or all_tried or self._out_of_patience

    @property
    def epochs_done(self) -> float:
        """Passes over the data so far, the present one as a fraction."""
        return epochs_done(self.state)

    @property
    def train_seconds(self) -> float:
        """Seconds of training, without validations and checkpoints, over all resumes."""
        return self.window.train_seconds

    @property
    def rate_name(self) -> str:
        """As the throughput is logged."""
        return f"train/{self.unit}_per_second"

    def summary(self) -> dict[str, float]:
        """What the summary of a run says of its training: the best validation, the time to warm up."""
        values = {f"best/{name}": value for name, value in (self.best or {}).items()}
        if self.warm_up_seconds:
            values["warm_up_seconds"] = round(self.warm_up_seconds, 2)
        return values

    @property
    def checkpoint_to_test(self) -> Path:
        """The best by validation, where there is one; else the last. With `eval_only` the one that was named."""
        best = None if self.config.eval_only else best_checkpoint(self.run.output_dir)
        chosen = best or self.last_checkpoint
        assert chosen is not None  # the last round saved one, or --eval_only names one
        return chosen

    def warm_up(self, optimizer: Optimizer, train: Callable[[Any, int, float], Any]) -> None:
        """On a GPU or with `--compile`, train on some updates before the clock runs, and undo it.

        A GPU loads each kernel at its first use and cuDNN tries its algorithms on each new shape, which takes
        seconds; the compiler takes longer. `train(update, step, lr)` is called with the first update of an epoch
        and with the last, which is smaller where an epoch does not divide evenly, as of the first step and last.
        """
        if self.last or not (self.config.compile or self.accelerator.device.type == "cuda"):
            return
        started = time.perf_counter()
        updates = self.plan(0, 0)
        with preserved_state(self.accelerator, self.model, optimizer):
            for place in (0, -1):
                update = updates[place]
                for step in (0, self.total_steps - 1):
                    train(update, step, 0.0)
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        self.warm_up_seconds = time.perf_counter() - started

    # -- the rounds ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        bar = self.run.progress_bar(self.total_steps, self.step)
        with bar, profiler(self.run.output_dir, self.accelerator, enabled=self.config.profile) as profile:
            try:
                self.window.start()
                if not self.last:
                    self._plan_epoch()
                while True:
                    step = self.step
                    yield None if self.last else self._next_update()
                    updated = self.step > step
                    if updated:
                        profile.step()
                        bar.update()
                    self._find_out_what_is_due(updated)
                    if self._logs:
                        self._log(bar)
            finally:
                self.window.stop()

    def _next_update(self) -> Any:
        while self.state["updates_in_epoch"] >= len(self._updates):
            begin_next_epoch(self.state)
            self._plan_epoch()
        return self._updates[self.state["updates_in_epoch"]]

    def _plan_epoch(self) -> None:
        self._updates = self.plan(self.state["epoch"], self.state["seen_before"])
        self.state["updates_of_epoch"] = len(self._updates)

    def count(
        self, sums: dict[str, Tensor], n: int, gradient_norm: Tensor | float, lr: float, **latest: Tensor | float
    ) -> bool:
        """Note an update: this process's `sums` by name, over `n` tokens or images of all processes.

        Sums are logged as averages since the last log line; the norm, the rate and whatever else is given by name
        (`latest`: a weight of the loss, the norm of one layer's gradient) as they are in the update of that line.
        False where fp16 overflowed and nothing was updated: an average of the weights then stays as it is.
        """
        self.window.start()
        self.state["updates_in_epoch"] += 1
        if self.accelerator.optimizer_step_was_skipped:
            self.state["skipped"] += 1
            self.window.skip(sums, self.step, self.last_checkpoint)
            return False
        self.state["step"] += 1
        self.window.add(sums, n)
        self._gradient_norm, self._lr, self._latest = gradient_norm, lr, latest
        return True

    def _find_out_what_is_due(self, updated: bool) -> None:
        """After an update, or after one that fp16 overflowed in: then the step is one that was looked at before."""
        ends_period = self.last or self._ends_validation_period(updated)
        # Where fp16 overflows in the updates that follow a validation, the weights are still those.
        self._validation_is_due = self.validates and ends_period and self.step != self.state["validated_at"]
        self._checkpoint_is_due = self.last or self._ends_checkpoint_period(updated, ends_period)
        self._logs = self.last or (updated and self._is_multiple(self.config.log_every))
        self._signalled = self.run.stop_requested(agree=self._logs or self.step % AGREE_EVERY == 0)
        if self._logs or self._signalled or self._validation_is_due or self._checkpoint_is_due:
            self.window.raise_if_diverged(self.step, self._gradient_norm, self.last_checkpoint)

    def _is_multiple(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _ends_checkpoint_period(self, updated: bool, ends_validation_period: bool) -> bool:
        if self.config.checkpointing_steps:
            return updated and self._is_multiple(self.config.checkpointing_steps)
        return ends_validation_period and not self.validates  # else a validation asks for it, once it is made

    def _ends_validation_period(self, updated: bool) -> bool:
        if self.validate_every:
            return updated and self._is_multiple(self.validate_every)
        ends_epoch = self.state["updates_in_epoch"] == len(self._updates)
        every = self.validate_every_epochs
        return ends_epoch and every > 0 and (self.state["epoch"] + 1) % every == 0

    def _log(self, bar) -> None:
        if self.window.is_empty:
            return
        means, rate = self.window.read()
        values = {f"train/{name}": mean for name, mean in means.items()}
        values |= {
            self.rate_name: rate,
            "train/gradient_norm": float(self._gradient_norm),
            "lr": self._lr,
            **{f"train/{name}": float(value) for name, value in self._latest.items()},
        }
        self.run.log(values, self.step, self.epochs_done)
        loss = values["train/loss"]
        bar.set_postfix_str(f"loss {loss:.3f}, lr {self._lr:.1e}, {rate:,.0f} {self.unit}/s", refresh=False)

    # -- what is due --------------------------------------------------------------------------------------

    def due(self, what: Literal["validate", "save"]) -> bool:
        """Whether it is time to validate, or to save. The clock stands still until that is done.

        A run that a signal ends saves first; a validation that was due then is made when it is resumed.
        """
        if what == "validate":
            due = self._validation_is_due and not self._signalled
        else:
            due = self._checkpoint_is_due or self._signalled
        if due:
            self.window.stop()
            if self.ema:
                self.ema.gather()
        else:
            self.window.start()
        return due

    def log_validation(
        self,
        metrics: Mapping[str, Any],
        is_better: Callable[[Mapping[str, float], Mapping[str, float]], bool],
    ) -> None:
        """Log a validation's metrics, by their plain names, and note whether they are the best so far.

        `is_better(metrics, best)` decides: see `better_by` in training/metrics.py.
        """
        values = prefixed("valid", metrics)
        self.run.log(values, self.step, self.epochs_done)
        best = {name.removeprefix("valid/"): value for name, value in (self.best or {}).items()}
        found_best = self.best is None or is_better(metrics, best)
        if found_best:
            self.state["best"] = {"step": self.step, **values}
        if self.validations_kept:
            self.state["kept_steps"] = [*self.state.get("kept_steps", ()), self.step][-self.validations_kept :]
        self.state["validations_since_best"] = 0 if found_best else self.state["validations_since_best"] + 1
        if self._out_of_patience and self.best:
            self.run.print(
                f"out of patience: no validation since step {self.best['step']:,} was better; training ends at "
                f"step {self.step:,} of {self.total_steps:,}"
            )
        at_each_validation = self.config.checkpointing_steps == 0
        self._checkpoint_is_due |= found_best or at_each_validation or self.last
        self._validation_is_due = False
        self.state["validated_at"] = self.step
        self.window.start()

    @property
    def checkpoints_kept(self) -> list[Path]:
        """The sound ones of the last `validations_kept` validations, oldest first."""
        kept = self.state.get("kept_steps", ())
        return [
            path for path in list_checkpoints(self.run.output_dir) if step_of(path) in kept and not damage(path)
        ]

    def offer_mean(
        self,
        mean: dict[str, Tensor],
        metrics: Mapping[str, Any],
        is_better: Callable[[Mapping[str, float], Mapping[str, float]], bool],
    ) -> bool:
        """After the last update: log the `metrics` of a validation with the weights `mean` of several checkpoints.

        Where they are the best so far, a checkpoint keeps them, and the test takes them. Returns whether it does.
        """
        self.run.log(prefixed("valid_mean", metrics), self.step, self.epochs_done)
        best = {name.removeprefix("valid/"): value for name, value in (self.best or {}).items()}
        if self.best is not None and not is_better(metrics, best):
            return False
        self.state["best"] = {"step": self.step, **prefixed("valid", metrics)}
        self.save(mean)
        self.window.stop()
        return True

    def save(self, mean: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint, with the `mean` of others' weights. Where a signal asked the run to end, end it."""
        if not is_sharded(self.accelerator):
            raise_if_replicas_differ(self.accelerator, self.model)
        state = {
            **self.state,
            "validation_is_due": self._validation_is_due,
            **self.run.state(),
            "window": self.window.state(),
            "config": json.loads(redacted(json.dumps(asdict(self.config)))),
        }
        self.last_checkpoint = save_checkpoint(
            self.accelerator,
            self.model,
            self.run.output_dir,
            state,
            ema=self.ema,
            mean=mean,
            files=self.files,
            total_limit=self.config.checkpoints_total_limit,
        )
        self._checkpoint_is_due = False
        if self._signalled:
            self.run.exit_after_signal(self.last_checkpoint)
        self.window.start()
