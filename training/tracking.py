"""Where a run's metrics go besides metrics.jsonl: W&B, trackio or TensorBoard. None of them ever ends a run."""

import contextlib
import importlib.util
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerate import Accelerator
from PIL import Image

from training.errors import UsageError
from training.metrics import METRICS
from training.redaction import redacted

TrackerName = Literal["wandb", "trackio", "tensorboard", "none"]
PROJECT = "onecycle"  # the one project of all scripts; groups and job types tell the runs apart
TITLES = {"wandb": "W&B", "trackio": "trackio", "tensorboard": "TensorBoard"}
KEPT_BY_TRACKERS = ("step", "time")  # trackio and TensorBoard have their own
SAMPLES_OF_A_TABLE = 50
LONGEST_SAMPLE = 500  # characters
ROOT = Path(__file__).resolve().parents[1]
CODE = ("*.py", "data/**/*.py", "figures/*.py", "models/*.py", "training/*.py")  # what a run's numbers depend on


def require_tracker(name: str) -> None:
    """Raise UsageError where the package of an optional tracker is missing."""
    if name in ("trackio", "tensorboard") and importlib.util.find_spec(name) is None:
        raise UsageError(f"--tracker {name} needs the package {name}: pip install {name}, or name another tracker")


def tracked_settings(script: str, config: Any, **facts: Any) -> dict[str, Any]:
    """The settings of a run for a tracker's table: flat, lists as on a command line, without secrets.

    `config` is the script's dataclass; `facts` stand beside its fields. What is None is left out: TensorBoard takes
    none.
    """
    settings = {"script": script, **asdict(config), **facts}
    return {name: _as_typed(value) for name, value in settings.items() if value is not None}


def _as_typed(value: Any) -> Any:
    """(64, 256) becomes "64 256"."""
    if isinstance(value, tuple | list):
        return " ".join(str(_as_typed(part)) for part in value)
    return value if isinstance(value, bool | int | float) else redacted(str(value))


class Backend(Protocol):
    """One tracker's calls. Each of them may raise."""

    def log(self, line: Mapping[str, Any], step: int) -> None: ...
    def log_figures(self, paths: Sequence[Path], step: int) -> None: ...
    def log_samples(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None: ...
    def summarise(self, summary: Mapping[str, Any]) -> None: ...
    def finish(self, exit_code: int) -> None: ...


class Tracking:
    """A run's tracker, on the main process. Once it fails it is off for the rest of the run, and one line says so.

    `config` is the script's dataclass; `tags` tell of the hardware, and `facts` stand beside the settings.
    `resumed_state` is the `state` of the run that goes on: the tracker then shows both as one run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        script: str,
        config: Any,
        tags: Sequence[str] = (),
        resumed_state: Mapping[str, Any] | None = None,
        **facts: Any,
    ):
        self.accelerator, self.config, self.script, self.tags = accelerator, config, script, tags
        state = resumed_state or {}
        self.resumed = bool(state.get("tracker_id"))
        self.resumed_step: int = state.get("step", 0)
        self.id: str = state.get("tracker_id") or secrets.token_hex(4)
        before = [Path(folder) for folder in state.get("tracker_folders", [])]
        self.folders = list(dict.fromkeys([*before, Path(config.output_dir).resolve()]))
        self.backend: Backend | None = None
        if accelerator.is_main_process and config.tracker != "none":
            self._open(tracked_settings(script, config, **facts))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: JSON data."""
        return {"tracker_id": self.id, "tracker_folders": [str(folder) for folder in self.folders]}

    def _open(self, settings: dict[str, Any]) -> None:
        backends: dict[str, Callable[[Tracking, dict[str, Any]], Backend]] = {
            "wandb": WandbBackend,
            "trackio": TrackioBackend,
            "tensorboard": TensorBoardBackend,
        }
        self.accelerator.log_with = [self.config.tracker]
        try:
            self.backend = backends[self.config.tracker](self, settings)
        except Exception as error:  # whatever a tracker does, the run goes on
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        self.backend = None
        self.accelerator.trackers = []
        title = TITLES[self.config.tracker]
        reason = redacted(repr(error))
        print(f"warning: {title} failed and is off for this run: {reason}", file=sys.stderr, flush=True)

    def _call(self, use: Callable[[Backend], None]) -> None:
        if self.backend is not None:
            try:
                use(self.backend)
            except Exception as error:  # whatever a tracker does, the run goes on
                self._drop(error)

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Send a line of metrics.jsonl."""
        self._call(lambda backend: backend.log(line, step))

    def log_figures(self, paths: Sequence[Path], step: int) -> None:
        """Send PNG files, each as `figures/<its name>` with its title as caption."""
        self._call(lambda backend: backend.log_figures(paths, step))

    def log_samples(self, split: str, samples: Mapping[str, Sequence[str]], step: int) -> None:
        """Send columns of texts as the table `samples/<split>`, of some rows evenly spaced."""
        columns = list(samples)
        rows = list(zip(*samples.values(), strict=True))
        rows = rows[:: max(1, -(-len(rows) // SAMPLES_OF_A_TABLE))]
        short = [[shortened(text) for text in row] for row in rows]
        self._call(lambda backend: backend.log_samples(f"samples/{split}", columns, short, step))

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Send what summary.json holds."""
        flat = {name: value for name, value in summary.items() if not isinstance(value, Mapping)}
        for name, values in summary.items():
            if isinstance(values, Mapping):  # "versions": a column each
                flat |= {f"{name}/{key}": value for key, value in values.items()}
        self._call(lambda backend: backend.summarise(flat))

    def finish(self, exit_code: int = 0) -> None:
        """Wait until all is sent or written, and close the tracker."""
        self._call(lambda backend: backend.finish(exit_code))
        self.backend = None
        self.accelerator.trackers = []  # Accelerate would finish them again


class WandbBackend:
    """W&B, through Accelerate's tracker: online where it is logged in, else offline."""

    def __init__(self, tracking: Tracking, settings: dict[str, Any]):
        import wandb

        self.tracking = tracking
        config = tracking.config
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not logged_in_to_wandb():
            mode = "offline"
        options = {
            "dir": str(Path(config.output_dir).resolve()),  # W&B's own process may work in another folder
            "group": tracking.script,
            "job_type": config.recipe,
            "name": f"{tracking.script}/{config.recipe}",
            "tags": [*tracking.tags],
            "config": settings,  # later, W&B would warn of each setting that a sweep's agent chose
            # A run dropped before its end must not be handed out again as the next one's.
            "settings": wandb.Settings(silent=True, console="off", reinit="finish_previous", save_code=True),
            **({"mode": mode} if mode else {}),
            **({"id": tracking.id, "resume": "allow"} if tracking.resumed else {}),
        }
        with _redacted_command_line():  # which W&B keeps with the run
            tracking.accelerator.init_trackers(PROJECT, init_kwargs={"wandb": options})
        self.run = tracking.accelerator.get_tracker("wandb", unwrap=True)
        tracking.id = self.run.id
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        # What is chosen by is shown at its best; test values are those of the chosen weights.
        for name, known in METRICS.items():
            best = "max" if known.more_is_better else "min"
            self.run.define_metric(f"valid/{name}", step_metric="step", summary=best)
        self._save_code()
        if mode == "offline":
            print(f"W&B is offline: to upload this run later, `{self._sync_command()}`", flush=True)
        elif self.run.url:
            print(f"W&B: {self.run.url}", flush=True)

    def _save_code(self) -> None:
        """The project's code as it is now, with the run's files: W&B's own saving has the script alone."""
        folder = Path(self.run.dir) / "code"
        for pattern in CODE:
            for path in ROOT.glob(pattern):
                copy = folder / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        self.run.save(f"{folder}/**/*.py", base_path=self.run.dir, policy="now")
        self.run.save(f"{folder}/*.py", base_path=self.run.dir, policy="now")

    def _sync_command(self) -> str:
        """What uploads this run, and the pieces before its resumes, which belong to the same run of W&B."""
        pieces = []
        for folder in self.tracking.folders:
            found = folder.glob(f"wandb/offline-run-*-{self.run.id}*")  # "-1" behind it: begun in the same second
            pieces += sorted(found)
        return shlex.join(["wandb", "sync", *(_relative(piece) for piece in pieces)])

    def log(self, line: Mapping[str, Any], step: int) -> None:
        self.run.log(dict(line))  # `step` is in the line, and every metric's axis

    def log_figures(self, paths: Sequence[Path], step: int) -> None:
        import wandb

        images = {f"figures/{path.stem}": wandb.Image(str(path), caption=title_of_png(path)) for path in paths}
        self.run.log({"step": step, **images})

    def log_samples(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        import wandb

        self.run.log({"step": step, name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def summarise(self, summary: Mapping[str, Any]) -> None:
        self.run.summary.update(summary)

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)


class ScalarBackend:
    """A tracker of Accelerate's that is sent numbers and texts; figures stay in the run's folder."""

    def __init__(self, tracking: Tracking, name: str, project: str, settings: dict, options: dict[str, Any]):
        tracking.accelerator.init_trackers(project, settings, init_kwargs={name: options})
        self.tracker = tracking.accelerator.get_tracker(name)

    def log(self, line: Mapping[str, Any], step: int) -> None:
        self.tracker.log({name: value for name, value in line.items() if name not in KEPT_BY_TRACKERS}, step=step)

    def log_figures(self, paths: Sequence[Path], step: int) -> None:
        """They are PNG files in the run's folder."""

    def log_samples(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
        lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
        self.tracker.log({name: "\n".join(lines)}, step=step)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """What is in it was logged, or is in summary.json."""

    def finish(self, exit_code: int) -> None:
        self.tracker.finish()


class TrackioBackend(ScalarBackend):
    """trackio keeps the runs of all projects in one place of its own, which `trackio show` serves."""

    def __init__(self, tracking: Tracking, settings: dict[str, Any]):
        name = f"{tracking.script}/{tracking.config.recipe}/{tracking.id}"
        options = {"name": name, "group": tracking.script, "resume": "allow"}
        super().__init__(tracking, "trackio", PROJECT, settings, options)


class TensorBoardBackend(ScalarBackend):
    """TensorBoard's files lie in <output_dir>/tensorboard."""

    def __init__(self, tracking: Tracking, settings: dict[str, Any]):
        tracking.accelerator.project_configuration.logging_dir = str(tracking.config.output_dir)
        # What was logged between the checkpoint and the kill will be logged again.
        options = {"purge_step": tracking.resumed_step + 1} if tracking.resumed else {}
        super().__init__(tracking, "tensorboard", "tensorboard", settings, options)


def logged_in_to_wandb() -> bool:
    """Whether W&B knows who runs this, without asking: a key that is wrong is told of in a line."""
    import wandb

    try:
        return wandb.login(prompt=False)
    except wandb.Error as error:  # there is a key, but it is wrong or there is no network
        print(f"warning: W&B cannot be reached: {redacted(str(error))}", file=sys.stderr, flush=True)
        return False


@contextlib.contextmanager
def _redacted_command_line() -> Iterator[None]:
    arguments = sys.argv
    sys.argv = [redacted(argument) for argument in arguments]
    try:
        yield
    finally:
        sys.argv = arguments


def title_of_png(path: Path) -> str:
    """The title that `figures` wrote into a PNG file; where there is none, the words of its name."""
    with Image.open(path) as image:
        title = image.info.get("Title", "")
    return title or path.stem.replace("_", " ")


def shortened(text: str) -> str:
    """The text's first characters, and a mark where there were more."""
    return text if len(text) <= LONGEST_SAMPLE else f"{text[:LONGEST_SAMPLE]}…"


def _relative(path: Path) -> str:
    """As seen from the working directory, where it lies below it."""
    here = Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
