from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from figures import corpus as corpus_figures
from figures.corpus import plot_length_losses, plot_lengths, plot_occurrences, plot_unknown, plot_zipf

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph or a squeezed layout is only a warning


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures as they are written, by file name, to look inside them; each must be a picture."""
    seen: dict[str, Figure] = {}
    save_png = corpus_figures.save_png

    def save_and_keep(figure: Figure, path: Path) -> None:
        save_png(figure, path)
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1_000_000)) > 10, "an empty picture"
        seen[path.name] = figure

    monkeypatch.setattr(corpus_figures, "save_png", save_and_keep)
    return seen


def bars(container) -> list[float]:
    return [float(bar.get_height()) for bar in container]


def curve(ax, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return list(zip(*(np.asarray(data).tolist() for data in line.get_data()), strict=True))


def test_bars_are_shares_of_types_and_of_tokens(tmp_path, drawn):
    counts = {"de": np.array([1, 1, 2, 9, 10, 27, 5000]), "en": np.array([1, 4])}
    plot_occurrences(tmp_path / "a.png", counts)
    top, bottom = drawn["a.png"].axes
    assert bars(top.containers[0]) == pytest.approx(np.array([2, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1]) / 7)
    assert bars(bottom.containers[0]) == pytest.approx(np.array([2, 2, 0, 0, 0, 9, 10, 27, 0, 0, 5000]) / 5050)
    assert bars(top.containers[1])[:4] == [0.5, 0, 0, 0.5]
    assert bars(bottom.containers[1])[:4] == [0.2, 0, 0, 0.8]
    names = [tick.get_text() for tick in bottom.get_xticklabels()]
    assert names == ["1", "2", "3", "4", "5", "6–9", "10–19", "20–49", "50–99", "100–999", "≥ 1,000"]


def test_unknown_shares_and_vocabulary_over_the_minimum_frequency(tmp_path, drawn):
    unknown = {
        "validation": {"de": np.array([0.1, 0.2]), "en": np.array([0.0, 0.3])},
        "test": {"de": np.array([0.1, 0.25]), "en": np.array([0.0, 0.35])},
    }
    plot_unknown(tmp_path / "u.png", unknown, {"de": np.array([90, 40]), "en": np.array([70, 30])}, 2)
    left, right = drawn["u.png"].axes
    assert curve(left, "de, test") == [(1, 0.1), (2, 0.25)]
    assert curve(left, "en, validation") == [(1, 0.0), (2, 0.3)]
    assert curve(right, "en") == [(1, 70), (2, 30)]
    assert {x for x, _ in curve(left, "recommended: 2")} == {2}


def test_lost_shares_over_the_maximum_length(tmp_path, drawn):
    losses = {"pairs": np.array([1, 1, 0.5, 0.0]), "de tokens": np.array([1, 1, 0.25, 0.0])}
    plot_length_losses(tmp_path / "l.png", losses, 3, 0.005)
    ax = drawn["l.png"].axes[0]
    assert curve(ax, "pairs") == [(0, 1), (1, 1), (2, 0.5)]  # nothing lost has no place on a logarithmic scale
    assert curve(ax, "de tokens")[2] == (2, 0.25)
    assert {x for x, _ in curve(ax, "recommended: 3")} == {3}
    assert {y for _, y in curve(ax, "0.5%, the most to be lost")} == {0.005}


@pytest.mark.parametrize("longest", [1, 12, 1000])
def test_every_sentence_and_pair_stands_in_the_histograms(tmp_path, drawn, longest):
    rng = np.random.default_rng(0)
    lengths = {"de": rng.integers(1, longest + 1, 500), "en": rng.integers(0, longest + 1, 500)}
    plot_lengths(tmp_path / "h.png", lengths)
    left, right = drawn["h.png"].axes
    for container in left.containers:
        assert sum(bars(container)) == 500
    assert sum(bars(right.containers[0])) == (lengths["en"] > 0).sum()
    if longest == 12:
        assert bars(left.containers[0]) == np.bincount(lengths["de"], minlength=13).tolist()


def test_one_giant_does_not_stretch_the_axis(tmp_path, drawn):
    lengths = {"de": np.array([5] * 2000 + [900]), "en": np.array([6] * 2001)}
    plot_lengths(tmp_path / "h.png", lengths)
    left = drawn["h.png"].axes[0]
    assert left.get_xlim()[1] < 10
    assert bars(left.containers[0])[5:] == [2000, 1]


def test_zipf_is_the_falling_frequency_over_the_rank(tmp_path, drawn):
    plot_zipf(tmp_path / "z.png", {"de": np.array([3, 1, 7, 1]), "en": np.arange(1, 50_001)})
    ax = drawn["z.png"].axes[0]
    assert curve(ax, "de") == [(1, 7), (2, 3), (3, 1), (4, 1)]
    points = curve(ax, "en")
    assert points[0] == (1, 50_000) and points[-1] == (50_000, 1) and len(points) <= corpus_figures.MAX_POINTS
    assert all(frequency == 50_001 - rank for rank, frequency in points)
