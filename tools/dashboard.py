"""Build the project's views at W&B: all scripts, recipes compared, seeds compared, speed.

    python -m tools.dashboard --dry_run                     # check them and write runs/dashboard.json
    python -m tools.dashboard --entity my-team --baseline runs/cifar/speedrun

Each view has a section a script, over the run's own `step`; runs of one recipe are one line, the mean over their
seeds with its standard deviation. A view that is built again replaces the one that was there. Needs
`pip install wandb-workspaces`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.metrics import SPLITS, metric, readable_name
from training.redaction import redacted
from training.run_folder import write_whole, writing
from training.tracking import PROJECT

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2.interface import PanelTypes


@dataclass(frozen=True)
class Section:
    """What a section of a view shows, by the names of metrics.jsonl, of summary.json and of figures/*.png."""

    title: str
    curves: tuple[tuple[str, ...], ...] = ()  # each a panel of curves over the step
    bars: tuple[str, ...] = ()  # numbers of the summary, each a panel
    figures: tuple[str, ...] = ()  # the PNG files shown beside each other
    tables: tuple[str, ...] = ()  # samples


EVERY_SCRIPT = Section(
    "every script",
    curves=(("train/loss",), ("lr",), ("train/gradient_norm",)),
    bars=("train_seconds", "peak_memory_mb", "n_parameters"),
    figures=("loss", "lr", "throughput"),
)
SCRIPTS = {
    "translation": Section(
        "translation",
        curves=(("valid/bleu",), ("valid/chrf",), ("train/nll", "valid/nll"), ("valid/brevity_penalty",)),
        bars=("test/bleu", "test/bleu_without_near_duplicates", "test/chrf", "best/valid/bleu"),
        figures=("lengths", "attention_1"),
        tables=("samples/valid", "samples/test"),
    ),
    "unet": Section(
        "U-Net",
        curves=(("valid/dice",), ("valid/iou",), ("train/loss", "valid/loss")),
        bars=("test/dice", "test/iou", "test/dice_views", "best/valid/dice"),
        figures=("overlays", "best_and_worst", "samples", "augmentations"),
    ),
    "cvae": Section(
        "conditional VAE",
        curves=(("valid/elbo",), ("train/reconstruction", "valid/reconstruction"), ("train/kl", "valid/kl")),
        bars=("test/elbo", "test/iw_bound", "test/wrong_label_hits", "best/valid/elbo"),
        figures=("wrong_labels", "reconstructions", "prior_samples", "latent_map"),
    ),
    "cifar": Section(
        "CIFAR-10",
        curves=(("train/accuracy", "valid/accuracy"), ("train/loss", "valid/loss")),
        bars=("test/accuracy", "test/accuracy_views", "best/valid/accuracy"),
        figures=("misclassified", "confusion_matrix", "class_accuracy", "augmentations"),
    ),
}
SPEED = Section(
    "speed",
    curves=(("train/tokens_per_second",), ("train/images_per_second",)),
    bars=("train_seconds", "total_seconds", "peak_memory_mb", "n_parameters"),
)
RECIPE = ("script", "recipe")  # settings that runs are grouped by
HEADLINES = ("test/bleu", "test/dice", "test/elbo", "test/accuracy")


@dataclass(frozen=True)
class View:
    """A saved view. `groups` are the settings whose runs of equal values are averaged, `columns` those pinned."""

    title: str
    sections: tuple[Section, ...]
    groups: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def slug(self) -> str:
        """Its name in the address, letters alone."""
        return PROJECT + "".join(letter for letter in self.title if letter.isalnum())


VIEWS = (
    View(
        "all scripts",
        (*SCRIPTS.values(), EVERY_SCRIPT, SPEED),
        RECIPE,
        (*(f"summary:{name}" for name in HEADLINES), "summary:train_seconds", "config:device", "config:seed"),
    ),
    View(
        "compare recipes",
        (*SCRIPTS.values(), EVERY_SCRIPT),
        RECIPE,
        (*(f"summary:{name}" for name in HEADLINES), "summary:n_parameters", "config:lr", "config:epochs"),
    ),
    View(
        "compare seeds",
        tuple(SCRIPTS.values()),
        (*RECIPE, "seed"),
        ("config:seed", *(f"summary:{name}" for name in HEADLINES), "config:git_commit"),
    ),
    View(
        "speed",
        (SPEED,),
        (*RECIPE, "device", "mixed_precision", "num_processes"),
        (
            *("config:device", "config:mixed_precision", "config:num_processes", "config:compile"),
            *("summary:train_seconds", "summary:total_seconds", "summary:peak_memory_mb"),
        ),
    ),
)


def title_of(names: Sequence[str]) -> str:
    """`["train/nll", "valid/nll"]` becomes "negative log-likelihood: training, validation"."""
    if len(names) > 1:
        splits = [SPLITS[name.partition("/")[0]] for name in names]
        return f"{metric(names[0]).label}: {', '.join(splits)}"
    (name,) = names
    of_the_best = name.removeprefix("best/")
    return readable_name(name) if of_the_best == name else f"best {readable_name(of_the_best)}"


def panels_of(section: Section) -> list[PanelTypes]:
    """The section's panels, each on one row of its kind."""
    import wandb_workspaces.reports.v2 as wr

    panels: list[PanelTypes] = [
        wr.LinePlot(
            title=title_of(names),
            x="step",  # ours: W&B's own "Step" counts its calls
            y=list(names),
            title_x="update",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for names in section.curves
    ]
    panels += [
        wr.BarPlot(title=title_of([name]), metrics=[name], groupby_aggfunc="mean", groupby_rangefunc="stddev")
        for name in section.bars
    ]
    if section.figures:
        panels.append(wr.MediaBrowser(title="figures", media_keys=[f"figures/{name}" for name in section.figures]))
    panels += [wr.WeavePanelSummaryTable(table_name=name) for name in section.tables]
    return panels


def build(view: View, entity: str, project: str = PROJECT, baseline: str = "") -> ws.Workspace:
    """The view as wandb-workspaces has it; `baseline` is the id of a run that the others are compared with."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=entity,
        project=project,
        name=view.title,
        sections=[
            ws.Section(name=section.title, panels=panels_of(section), is_open=True) for section in view.sections
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=30, group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(name) for name in view.groups],
            pinned_columns=["run:displayName", *view.columns],
            baseline_run=baseline or None,
        ),
        auto_generate_panels=False,
    )


def as_json(workspaces: Sequence[ws.Workspace]) -> str:
    """What is sent to W&B, for reading. Raises ValueError where a view is not as W&B wants it."""
    models = [
        workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True) for workspace in workspaces
    ]
    return json.dumps(models, indent=1) + "\n"


def run_id(baseline: str) -> str:
    """The id of a run: of the folder that it was written to, or the id itself. Raises UsageError."""
    folder = Path(baseline)
    if not baseline or not folder.is_dir():
        return baseline
    files = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.parent.name)
    if not files:
        raise UsageError(f"{baseline} has no run of W&B below it: train with --tracker wandb, or name another")
    return files[-1].stem.removeprefix("run-")


def save(workspace: ws.Workspace, slug: str) -> str:
    """Save the view, in the place of one of the same name; its address."""
    from wandb_workspaces.workspaces import internal

    workspace._internal_name = f"nw-{slug}-v"
    try:
        workspace._internal_id = internal.get_view_dict(workspace.entity, workspace.project, slug)["id"]
    except ValueError:  # there is none yet
        workspace._internal_id = ""
    workspace.save()
    return workspace.url


def logged_in_entity() -> str | None:
    """Whose views they are unless --entity says otherwise; None where W&B is not logged in or not reached."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return None
    try:
        return wandb.Api().default_entity if wandb.login(prompt=False) else None
    except wandb.Error:
        return None


def require_package() -> None:
    """Raise UsageError where wandb-workspaces is missing."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "tools.dashboard needs the package wandb-workspaces: pip install wandb-workspaces"
        ) from error


def main(
    entity: str = "",
    project: str = PROJECT,
    baseline: str = "",
    output: PathFlag = "runs/dashboard.json",
    dry_run: bool = False,
) -> None:
    """Build the project's views at W&B.

    Args:
        entity: team or user at W&B; by default the one that is logged in
        project: project at W&B
        baseline: run that the others are compared with, its folder or its id
        output: where the views are written as JSON, with --dry_run or without a login
        dry_run: check the views and write them, and send nothing
    """
    try:
        require_package()
        baseline = run_id(baseline)
        default_entity = None if dry_run else logged_in_entity()
        entity = entity or default_entity or "entity"
        workspaces = [build(view, entity, project, baseline) for view in VIEWS]
        text = as_json(workspaces)
        if default_entity is None:
            with writing(Path(output)):
                Path(output).parent.mkdir(parents=True, exist_ok=True)
                write_whole(Path(output), text)
            why = "" if dry_run else "W&B is not logged in or not reached, so nothing was sent: "
            print(f"{why}{len(VIEWS)} views are checked and written to {output}")
            return
        for view, workspace in zip(VIEWS, workspaces, strict=True):
            print(f"{view.title}: {_save_or_say_why(workspace, view.slug)}")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _save_or_say_why(workspace: ws.Workspace, slug: str) -> str:
    try:
        return save(workspace, slug)
    except Exception as error:  # of the network, the account or the service
        raise UsageError(
            f"W&B did not take the view: {redacted(str(error))}; look at --entity and --project, or add --dry_run"
        ) from error


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
