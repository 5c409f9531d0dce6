import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from figures import curves as figures
from figures.curves import plot_attention, plot_curves, plot_length_histogram

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph or a squeezed layout is only a warning


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures as they are written, by file name, to look inside them."""
    seen: dict[str, Figure] = {}
    save_png = figures.save_png

    def save_and_keep(figure: Figure, path: Path) -> None:
        save_png(figure, path)
        seen[path.name] = figure

    monkeypatch.setattr(figures, "save_png", save_and_keep)
    return seen


def write_metrics(path: Path, rows: list[dict], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return path


def curve(ax, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in ax.lines if line.get_label().startswith(label)]
    return list(zip(*line.get_data(), strict=True))


def assert_is_png(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1_000_000)) > 10, "an empty picture"


# --- training curves ---


def test_panels_with_data_are_written(tmp_path):
    rows = [{"step": s, "epoch": s / 5, "train/loss": 9 - s, "lr": s * 1e-4} for s in range(1, 8)]
    metrics = write_metrics(tmp_path / "metrics.jsonl", rows)
    panels = {"loss": ["train/loss", "valid/nll"], "lr": ["lr"], "bleu": ["valid/bleu"]}
    paths = plot_curves(metrics, tmp_path / "figures", panels)
    assert paths == [tmp_path / "figures" / "loss.png", tmp_path / "figures" / "lr.png"]
    assert sorted((tmp_path / "figures").iterdir()) == paths
    for path in paths:
        assert_is_png(path)


def test_curve_holds_the_values_and_later_lines_win(tmp_path, drawn):
    rows = [
        {"step": 1, "train/loss": 5.0},
        {"step": 2, "train/loss": 4.0},
        {"step": 3, "train/loss": 99.0},  # killed here, resumed from step 2
        {"step": 3, "train/loss": 3.0},
        {"step": 3, "valid/nll": 3.5},
        {"step": 4, "train/loss": 2.0},
    ]
    plot_curves(write_metrics(tmp_path / "m.jsonl", rows), tmp_path, {"loss": ["train/loss", "valid/nll"]})
    ax = drawn["loss.png"].axes[0]
    assert curve(ax, "training: loss") == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)]
    assert curve(ax, "validation: negative log-likelihood") == [(3, 3.5)]
    assert ax.get_xlabel() == "step (updates)"
    assert ax.get_ylabel() == "loss, negative log-likelihood"


@pytest.mark.parametrize(
    ("name", "values", "label"),
    [
        ("valid/bleu", [1.0, 30.25, 12.0], "validation: BLEU (best 30.25 at step 2,000)"),
        ("valid/nll", [4.0, 5.0, 2.5], "validation: negative log-likelihood (best 2.5 at step 3,000)"),
        ("valid/exact_match", [0.5, 0.25, 0.5], "validation: exact match (best 0.5 at step 1,000)"),
        ("valid/loss", [float("nan"), 7.0, float("inf")], "validation: loss (best 7 at step 2,000)"),
        ("valid/bleu", [float("nan")] * 3, "validation: BLEU"),
        ("train/loss", [3.0, 2.0, 1.0], "training: loss"),
    ],
)
def test_best_validation_value_is_marked(tmp_path, drawn, name, values, label):
    rows = [{"step": 1000 * (i + 1), name: value} for i, value in enumerate(values)]
    plot_curves(write_metrics(tmp_path / "m.jsonl", rows), tmp_path, {"panel": [name]})
    ax = drawn["panel.png"].axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [label]
    rings = [line for line in ax.lines if line.get_fillstyle() == "none"]
    assert len(rings) == ("best" in label)


def test_epoch_axis_stands_over_the_steps(tmp_path, drawn):
    rows = [{"step": s, "epoch": s / 250, "lr": 0.1 * s} for s in range(50, 1001, 50)]
    plot_curves(write_metrics(tmp_path / "m.jsonl", rows), tmp_path, {"lr": ["lr"]})
    bottom, top = drawn["lr.png"].axes
    assert top.get_xlabel() == "epoch"
    assert top.get_xlim() == bottom.get_xlim()
    step_of = {float(t.get_text()): s for t, s in zip(top.get_xticklabels(), top.get_xticks(), strict=True)}
    assert {1.0, 2.0, 3.0, 4.0} <= set(step_of)
    assert all(step == pytest.approx(250 * epoch) for epoch, step in step_of.items())


def test_no_epoch_axis_without_epochs(tmp_path, drawn):
    plot_curves(write_metrics(tmp_path / "m.jsonl", [{"step": 1, "lr": 1.0}]), tmp_path, {"lr": ["lr"]})
    assert len(drawn["lr.png"].axes) == 1


def test_throughput_is_drawn_from_zero(tmp_path, drawn):
    rows = [{"step": s, "train/tokens_per_second": 4000.0 + s} for s in range(9)]
    panels = {"throughput": ["train/tokens_per_second"]}
    plot_curves(write_metrics(tmp_path / "m.jsonl", rows), tmp_path, panels)
    assert drawn["throughput.png"].axes[0].get_ylim()[0] == 0


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    write_metrics(tmp_path / "m.jsonl", [{"step": 1, "lr": 1.0}])
    program = (
        "import sys; from pathlib import Path; from figures.curves import plot_curves\n"
        "assert 'matplotlib' not in sys.modules\n"
        "folder = Path(sys.argv[1]); plot_curves(folder / 'm.jsonl', folder, {'lr': ['lr']})\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)


# --- sentence lengths and padding ---


def test_length_histogram_counts_every_sentence_and_token(tmp_path, drawn):
    rng = np.random.default_rng(0)
    lengths = {"source": rng.integers(1, 200, 5000), "target": rng.integers(1, 90, 5000)}
    real, padding = rng.integers(900, 1000, 333), rng.integers(0, 100, 333)
    plot_length_histogram(lengths, {"real": real, "padding": padding}, tmp_path / "lengths.png")
    assert_is_png(tmp_path / "lengths.png")
    figure = drawn["lengths.png"]
    top, bottom = figure.axes
    for container in top.containers:
        assert sum(bar.get_height() for bar in container) == 5000
    tokens = [sum(bar.get_height() * bar.get_width() for bar in container) for container in bottom.containers]
    assert tokens == pytest.approx([real.sum(), padding.sum()])
    share = padding.sum() / (real.sum() + padding.sum())
    assert figure.get_suptitle().startswith(f"{100 * share:.1f}% of {real.sum() + padding.sum():,} tokens")


def test_length_histogram_of_one_tiny_batch(tmp_path):
    padded = {"real": np.array([3]), "padding": np.array([0])}
    plot_length_histogram({"source": np.array([3])}, padded, tmp_path / "lengths.png")
    assert_is_png(tmp_path / "lengths.png")


# --- attention maps ---


@pytest.mark.parametrize("n_heads", [1, 4, 8])
def test_attention_shows_each_head_and_the_mean_of_several(tmp_path, drawn, n_heads):
    source = ["▁Perché", "▁costa", "▁$", "5", "e", "$", "6", "?"]  # two `$` would be a formula
    target = ["▁Why", "▁naïve", "</s>"]
    weights = np.random.default_rng(0).dirichlet(np.ones(len(source)), (n_heads, len(target)))
    plot_attention(weights, source, target, tmp_path / "attention.png")
    assert_is_png(tmp_path / "attention.png")

    maps = [ax for ax in drawn["attention.png"].axes if ax.images]
    mean = {"mean of the heads": sum(weights) / n_heads} if n_heads > 1 else {}
    assert [ax.get_title() for ax in maps] == [f"head {i + 1}" for i in range(n_heads)] + list(mean)
    for ax, expected in zip(maps, [*weights, *mean.values()], strict=True):
        assert np.allclose(ax.images[0].get_array(), expected)
        assert ax.images[0].get_clim() == (0, weights.max())
    assert [text.get_text() for text in maps[-1].get_xticklabels()] == source
    assert [text.get_text() for text in maps[0].get_yticklabels()] == target


def test_attention_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 target tokens and 2 source tokens"):
        plot_attention(np.ones((4, 2, 3)), ["a", "b"], ["c", "d", "e"], tmp_path / "attention.png")


# --- labels in other scripts


def test_letters_that_no_font_has_are_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_installed_fallback_fonts", lambda: ())
    weights = np.full((2, 2, 3), 1 / 3)
    with pytest.warns(UserWarning) as caught:
        plot_attention(weights, ["他", "买了", "。"], ["一本", "书"], tmp_path / "attention.png")
    assert len(caught) == 1 and "no installed font" in str(caught[0].message)
    assert_is_png(tmp_path / "attention.png")


def test_an_installed_font_stands_in_for_what_is_missing(tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(figures, "_installed_fallback_fonts", lambda: ("STIXGeneral",))
    plot_attention(np.full((1, 1, 1), 1.0), ["a"], ["b"], tmp_path / "attention.png")
    labels = drawn["attention.png"].axes[0].get_xticklabels()
    assert all(label.get_fontfamily()[-1] == "STIXGeneral" for label in labels)


def test_only_fonts_that_are_there_are_asked_for(monkeypatch):
    monkeypatch.setattr(figures, "FALLBACK_FONTS", ("No Such Font", "DejaVu Serif"))
    figures._installed_fallback_fonts.cache_clear()
    assert figures._installed_fallback_fonts() == ("DejaVu Serif",)
    figures._installed_fallback_fonts.cache_clear()
