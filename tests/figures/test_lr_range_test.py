import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from figures.lr_range_test import plot_lr_range_test, report_lr_range_test
from training.lr_finder import LRRangeTest

LRS = tuple(10 ** (-6 + i / 5) for i in range(30))
FALLING = tuple(6 - 0.1 * i for i in range(30))


def seen_losses(
    losses: tuple[float, ...], steepest: float | None = None, valley: float | None = None
) -> LRRangeTest:
    return LRRangeTest(LRS[: len(losses)], losses, losses, steepest, valley, "fell", "reached the highest rate, 1")


RESULTS = {
    "suggests": seen_losses(FALLING, steepest=LRS[20], valley=LRS[12]),
    "flat": seen_losses((1.0,) * 30),
    "diverges": seen_losses((*FALLING[:20], 1e9), steepest=LRS[10], valley=LRS[9]),
    "nothing": seen_losses(()),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.filterwarnings("error")
def test_a_figure_is_written_whatever_was_seen(tmp_path: Path, name):
    path = tmp_path / "figures" / "lr_range_test.png"
    plot_lr_range_test(RESULTS[name], path)
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 400


def test_the_suggestions_are_marked_on_the_smoothed_curve(tmp_path: Path, monkeypatch):
    drawn = []
    monkeypatch.setattr("figures.lr_range_test.save_png", lambda figure, path: drawn.append(figure))
    plot_lr_range_test(RESULTS["suggests"], tmp_path / "x.png")
    (ax,) = drawn[0].axes
    marked = {line.get_label(): line.get_data() for line in ax.lines if ":" in line.get_label()}
    assert set(marked) == {f"steepest: {LRS[20]:.2e}", f"valley: {LRS[12]:.2e}"}
    for index, label in ((20, f"steepest: {LRS[20]:.2e}"), (12, f"valley: {LRS[12]:.2e}")):
        (x,), (y,) = marked[label]
        assert (x, y) == (LRS[index], FALLING[index])


def test_a_diverging_end_does_not_flatten_the_descent(tmp_path: Path, monkeypatch):
    drawn = []
    monkeypatch.setattr("figures.lr_range_test.save_png", lambda figure, path: drawn.append(figure))
    plot_lr_range_test(RESULTS["diverges"], tmp_path / "x.png")
    _, top = drawn[0].axes[0].get_ylim()
    assert math.isfinite(top) and top < 10


def test_the_report_says_what_to_type_and_where_the_figure_is(tmp_path: Path, capsys):
    report_lr_range_test(SimpleNamespace(is_main_process=True), RESULTS["suggests"], tmp_path)
    shown = capsys.readouterr().out
    assert f"--lr {LRS[12]:.1e} (valley)" in shown and f"{LRS[20]:.1e} (steepest)" in shown
    assert str(tmp_path / "figures" / "lr_range_test.png") in shown
    assert (tmp_path / "figures" / "lr_range_test.png").exists()


def test_without_a_descent_nothing_is_suggested(tmp_path: Path, capsys):
    report_lr_range_test(SimpleNamespace(is_main_process=True), RESULTS["flat"], tmp_path)
    assert "suggestion" not in capsys.readouterr().out


def test_only_the_main_process_reports(tmp_path: Path, capsys):
    report_lr_range_test(SimpleNamespace(is_main_process=False), RESULTS["suggests"], tmp_path)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
