"""PNG figures of a run: training curves, sentence lengths and padding, attention maps.

Matplotlib is imported where it is used, and through its object interface: no window, no global state.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.metrics import metric, read_metrics, readable_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BARS = 80
FALLBACK_FONTS = (  # for what DejaVu Sans has no letters: Chinese, Japanese, Korean, Thai, ..
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Noto Sans Thai",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Khmer",
    "Noto Sans Lao",
    "Noto Sans Myanmar",
    "Arial Unicode MS",
    "Unifont",
)


def new_figure(*, width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that draws with Agg, in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`, whose folder is made where it is missing, with its title in the PNG's own field.

    That is the figure's label where one was set, else its title or that of its only axes.

    Labels in a script that matplotlib's own font lacks are drawn with an installed one of `FALLBACK_FONTS`; where
    there is none, boxes stand for the letters and one warning says so.
    """
    from matplotlib.text import Text

    path.parent.mkdir(parents=True, exist_ok=True)
    if fallbacks := _installed_fallback_fonts():
        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), *fallbacks])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, format="png", metadata={"Title": _title(figure)})
    missing = [warning for warning in caught if "missing from font" in str(warning.message)]
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:  # one a letter
        warnings.warn(
            "no installed font has all letters of the figures' labels, boxes stand for them: "
            "install one that has, such as Noto Sans CJK",
            stacklevel=2,
        )


def _title(figure: Figure) -> str:
    only = figure.axes[0].get_title() if len(figure.axes) == 1 else ""
    return " ".join(str(figure.get_label() or figure.get_suptitle() or only).split())


@functools.cache
def _installed_fallback_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return tuple(name for name in FALLBACK_FONTS if name in installed)


# --- training curves ---


def plot_curves(metrics_path: Path, figures_dir: Path, panels: Mapping[str, Sequence[str]]) -> list[Path]:
    """Write `<figures_dir>/<panel>.png` for each panel, its named values over the step; return the paths.

    `metrics_path` is a `metrics.jsonl`: one JSON object a line with `step` and any of `epoch`, `time` and
    named values. Of two values for the same step the later line counts, as a resumed run repeats some steps.
    A panel none of whose values occur is not written. The best value of each `valid/` metric is ringed, and
    given in the legend.

    Raises `UsageError` for a line that is not such an object, except a last line cut short by a killed run.
    """
    rows = read_metrics(metrics_path)
    step_of_epoch: dict[float, int] = {}
    for row in rows:
        if "epoch" in row:
            step_of_epoch.setdefault(row["epoch"], row["step"])

    written = []
    for panel, names in panels.items():
        curves = {name: {row["step"]: row[name] for row in rows if name in row} for name in names}
        curves = {name: curve for name, curve in curves.items() if curve}
        if curves:
            path = figures_dir / f"{panel}.png"
            _plot_panel(curves, step_of_epoch, path)
            written.append(path)
    return written


def _plot_panel(curves: Mapping[str, Mapping[int, float]], step_of_epoch: Mapping[float, int], path: Path) -> None:
    figure = new_figure(width=8, height=4.5)
    ax = figure.add_subplot()
    for name, curve in curves.items():
        steps, values = np.array(list(curve)), np.array(list(curve.values()), dtype=float)
        marker = "." if len(steps) <= 50 else ""  # a single point draws no line
        (line,) = ax.plot(steps, values, marker=marker, label=readable_name(name))
        finite = np.isfinite(values)
        if name.startswith("valid/") and finite.any():
            sign = -1 if metric(name).more_is_better else 1
            best = np.where(finite, sign * values, np.inf).argmin()
            ax.plot(steps[best], values[best], "o", color=line.get_color(), markersize=11, fillstyle="none")
            line.set_label(f"{readable_name(name)} (best {values[best]:.4g} at step {steps[best]:,})")
    ax.set_ylabel(", ".join(dict.fromkeys(metric(name).label for name in curves)))
    if all(name.endswith("_per_second") for name in curves):
        ax.set_ylim(bottom=0)  # a rate is judged against zero
    ax.ticklabel_format(axis="y", scilimits=(-3, 5))
    ax.ticklabel_format(axis="x", scilimits=(-3, 7))
    ax.set_xlabel("step (updates)")
    ax.grid(alpha=0.3)
    ax.legend()
    _add_epoch_axis(ax, step_of_epoch)
    save_png(figure, path)


def _add_epoch_axis(ax: Axes, step_of_epoch: Mapping[float, int]) -> None:
    """A second x axis on top, with ticks at round epochs; none for fewer than two different epochs."""
    from matplotlib.ticker import MaxNLocator

    epochs = np.array(sorted(step_of_epoch))
    if len(epochs) < 2:
        return
    steps = [step_of_epoch[epoch] for epoch in epochs]
    ticks = MaxNLocator(nbins=10, steps=[1, 2, 5, 10]).tick_values(epochs[0], epochs[-1])
    ticks = ticks[(ticks >= epochs[0]) & (ticks <= epochs[-1])]
    top = ax.twiny()
    top.set_xlim(ax.get_xlim())
    top.set_xticks(np.interp(ticks, epochs, steps), [f"{tick:g}" for tick in ticks])
    top.set_xlabel("epoch")


# --- sentence lengths and padding ---


def plot_length_histogram(
    lengths_before: Mapping[str, np.ndarray], padded: Mapping[str, np.ndarray], path: Path
) -> None:
    """Write a PNG of the sentence lengths (above) and of real tokens against padding in the batches (below).

    `lengths_before`: for each side ("source", "target") the tokens of each sentence, (n_sentences,).
    `padded`: "real" and "padding", the tokens of each kind in each batch of one epoch, (n_batches,) both.
    """
    real, padding = np.asarray(padded["real"]), np.asarray(padded["padding"])
    n_tokens = real.sum() + padding.sum()
    figure = new_figure(width=8, height=7)
    figure.suptitle(f"{padding.sum() / n_tokens:.1%} of {n_tokens:,} tokens in {len(real):,} batches are padding")
    top, bottom = figure.subplots(2, 1)

    longest = max(int(np.max(lengths)) for lengths in lengths_before.values())
    width = math.ceil(longest / MAX_BARS)
    bins = np.arange(0.5, longest + width + 0.5, width)  # whole lengths fall in the middle of a bin
    for side, lengths in lengths_before.items():
        label = f"{side} (mean {np.mean(lengths):.1f}, longest {np.max(lengths)})"
        top.hist(lengths, bins=bins, alpha=0.5, label=label)
    top.set_xlim(left=0)
    top.set_xlabel("sentence length (tokens)")
    top.set_ylabel("sentences")
    top.set_title("Sentence lengths before batching", fontsize=10)
    top.grid(alpha=0.3)
    top.legend()

    # More bars than pixels would flicker, so that neighbours by padding share one bar, their mean.
    by_padding = np.argsort(padding / (real + padding), kind="stable")
    groups = np.array_split(by_padding, min(len(by_padding), MAX_BARS))
    sizes = np.array([len(group) for group in groups])
    left = np.cumsum(sizes) - sizes
    mean_real = np.array([real[group].mean() for group in groups])
    mean_padding = np.array([padding[group].mean() for group in groups])
    bottom.bar(left, mean_real, sizes, align="edge", label="real tokens", color="tab:blue")
    bottom.bar(left, mean_padding, sizes, mean_real, align="edge", label="padding", color="tab:orange")
    bottom.set_xlim(0, len(by_padding))
    bottom.set_ylim(0, 1.2 * (mean_real + mean_padding).max())  # room for the legend
    bottom.set_xlabel("batch, from the least to the most padding")
    bottom.set_ylabel("tokens in a batch")
    bottom.set_title("Tokens of each batch after batching", fontsize=10)
    bottom.legend(loc="upper right", ncols=2)
    save_png(figure, path)


# --- attention maps ---


def plot_attention(
    weights: np.ndarray, source_tokens: Sequence[str], target_tokens: Sequence[str], path: Path
) -> None:
    """Write a PNG of one sentence's cross-attention: a heat map for each head, and last the mean of several.

    `weights`: (n_heads, T, S), each row over S summing to one; `source_tokens`: S; `target_tokens`: T, the
    token that each row predicts. All maps share one colour scale.

    Raises `ValueError` where the shape of `weights` does not fit the tokens.
    """
    n_heads, n_target, n_source = weights.shape
    if (n_target, n_source) != (len(target_tokens), len(source_tokens)):
        raise ValueError(
            f"weights of shape {weights.shape} do not fit {len(target_tokens)} target tokens "
            f"and {len(source_tokens)} source tokens"
        )
    maps = {f"head {head}": weights[head - 1] for head in range(1, n_heads + 1)}
    if n_heads > 1:
        maps["mean of the heads"] = weights.mean(axis=0)
    n_columns = math.ceil(math.sqrt(len(maps)))
    n_rows = math.ceil(len(maps) / n_columns)
    inches_per_token = 0.2  # a line of 8-point type, and some air
    figure = new_figure(
        width=n_columns * max(n_source * inches_per_token, 1.6) + 2,
        height=n_rows * max(n_target * inches_per_token, 1.6) + 2,
    )
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(maps) :]:
        ax.set_axis_off()
    for index, (ax, (title, weight)) in enumerate(zip(axes.flat, maps.items(), strict=False)):
        image = ax.imshow(weight, cmap="viridis", vmin=0, vmax=weights.max(), aspect="auto")
        ax.set_title(title, fontsize=10)
        is_lowest, is_leftmost = index + n_columns >= len(maps), index % n_columns == 0
        ax.tick_params(labelbottom=is_lowest, labelleft=is_leftmost)
        # The other maps share these ticks. Tokens are text, not formulas: a `$` must not start one.
        if is_lowest:
            ax.set_xticks(range(n_source), source_tokens, rotation=90, fontsize=8, parse_math=False)
        if is_leftmost:
            ax.set_yticks(range(n_target), target_tokens, fontsize=8, parse_math=False)
    figure.supxlabel("source token", fontsize=10)
    figure.supylabel("target token", fontsize=10)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    save_png(figure, path)
