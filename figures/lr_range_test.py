"""What a learning-rate range test saw, as a figure and in words."""

from pathlib import Path

from accelerate import Accelerator

from figures.curves import new_figure, save_png
from training.lr_finder import LRRangeTest


def plot_lr_range_test(result: LRRangeTest, path: Path) -> None:
    """Write the loss over the learning rate as a PNG, raw and smoothed, with the suggestions marked."""
    figure = new_figure(width=8, height=5)
    ax = figure.add_subplot()
    ax.plot(result.lrs, result.losses, color="tab:blue", linewidth=0.8, alpha=0.5, label="loss")
    ax.plot(result.lrs, result.smoothed, color="tab:blue", linewidth=2.5, label="smoothed loss")
    suggestions = [("steepest", result.steepest, "tab:red", "o"), ("valley", result.valley, "tab:green", "s")]
    for name, lr, colour, marker in suggestions:
        if lr is not None:
            loss = result.smoothed[result.lrs.index(lr)]
            ax.axvline(lr, color=colour, linewidth=1, linestyle="--")
            ax.plot([lr], [loss], marker, color=colour, markersize=9, label=f"{name}: {lr:.2e}")
    ax.set_xscale("log")
    if result.smoothed:
        # A diverging end would flatten the descent, which is what the figure is for.
        low, high = min(result.losses), max(result.losses[: len(result.losses) // 2 + 1])
        span = high - low or 1.0
        ax.set_ylim(low - 0.1 * span, high + 0.5 * span)
    ax.set_xlabel("learning rate")
    ax.set_ylabel("training loss")
    ax.set_title(f"LR range test: {result.stopped}", fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend()
    save_png(figure, path)


def report_lr_range_test(accelerator: Accelerator, result: LRRangeTest, output_dir: Path) -> None:
    """Print the suggestions and write figures/lr_range_test.png, on the main process."""
    if not accelerator.is_main_process:
        return
    path = output_dir / "figures" / "lr_range_test.png"
    plot_lr_range_test(result, path)
    print(f"{result.stopped}; {result.reason}\nfigure: {path}")
    if result.valley is not None:
        print(f"suggestion: --lr {result.valley:.1e} (valley), or at most {result.steepest:.1e} (steepest)")
