"""PNG figures of a corpus: how rare its words are, what becomes unknown, what a maximum length loses.

Every function takes one curve or group of bars a language, under the language's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from figures.curves import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OCCURRENCES = (1, 2, 3, 4, 5, 6, 10, 20, 50, 100, 1000)  # each is the first of a group of bars
MAX_POINTS = 2000  # of a curve over ranks


def plot_occurrences(path: Path, counts: Mapping[str, np.ndarray]) -> None:
    """Write a PNG with the share of the vocabulary (above) and of all tokens (below) by number of occurrences.

    `counts`: for each language the occurrences of each type, (V,).
    """
    edges = np.array(OCCURRENCES)
    names = [
        f"{first:,}" if last == first else f"{first:,}–{last:,}"
        for first, last in zip(edges, edges[1:] - 1, strict=False)
    ]
    names.append(f"≥ {edges[-1]:,}")
    figure = new_figure(width=12, height=7)
    top, bottom = figure.subplots(2, 1, sharex=True)
    width = 0.8 / len(counts)
    for index, (language, of_types) in enumerate(counts.items()):
        group = np.searchsorted(edges, of_types, side="right") - 1  # (V,)
        for ax, weights in ((top, np.ones(len(of_types))), (bottom, of_types)):
            shares = np.bincount(group, weights, minlength=len(edges)) / weights.sum()
            at = np.arange(len(edges)) + (index + 0.5) * width - 0.4
            bars = ax.bar(at, shares, width, label=f"{language} ({weights.sum():,.0f})")
            ax.bar_label(bars, [f"{share:.1%}" if share else "" for share in shares], fontsize=7, padding=1)
    for ax, what in ((top, "vocabulary (types)"), (bottom, "text (tokens)")):
        ax.set_ylabel(f"share of the {what}")
        ax.yaxis.set_major_formatter(_percent)
        ax.margins(x=0.02, y=0.1)  # room for the numbers
        ax.grid(axis="y", alpha=0.3)
        ax.legend(loc="upper center")
    bottom.set_xticks(range(len(edges)), names)
    bottom.set_xlabel("number of occurrences of a word in the training split")
    save_png(figure, path)


def plot_unknown(
    path: Path,
    unknown: Mapping[str, Mapping[str, np.ndarray]],
    vocabulary: Mapping[str, np.ndarray],
    recommended: int,
) -> None:
    """Write a PNG of the unknown share of held-out tokens (left) and of the vocabulary (right), both over the
    minimum frequency 1, 2, .. F.

    `unknown`: for each split ("validation", "test"), for each language, shares (F,); `vocabulary`: for each
    language, entries (F,); `recommended`: the minimum frequency that is marked.
    """
    figure = new_figure(width=11, height=4.5)
    left, right = figure.subplots(1, 2)
    for (split, languages), line_style in zip(unknown.items(), ("-", "--"), strict=False):
        for index, (language, shares) in enumerate(languages.items()):
            style = {"color": f"C{index}", "linestyle": line_style, "marker": "."}
            left.plot(np.arange(1, len(shares) + 1), shares, label=f"{language}, {split}", **style)
    for language, entries in vocabulary.items():
        right.plot(np.arange(1, len(entries) + 1), entries, marker=".", label=language)
    left.yaxis.set_major_formatter(_percent)
    right.yaxis.set_major_formatter(_thousands)
    for ax, what in ((left, "share of tokens that are unknown"), (right, "entries of the vocabulary")):
        _mark(ax, recommended)
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("minimum frequency")
        ax.set_ylabel(what)
        ax.grid(alpha=0.3)
        ax.legend()
    save_png(figure, path)


def plot_length_losses(path: Path, losses: Mapping[str, np.ndarray], recommended: int, allowed: float) -> None:
    """Write a PNG of the shares that a maximum length loses, on a logarithmic scale.

    `losses`: for each of "pairs" and the languages' tokens, the share lost at maximum length 0, 1, .. M, (M + 1,);
    `recommended`: the length that is marked; `allowed`: the share that it may lose.
    """
    figure = new_figure(width=8, height=4.5)
    ax = figure.add_subplot()
    for what, shares in losses.items():
        lost = np.flatnonzero(shares)  # zero has no place on a logarithmic scale
        ax.plot(lost, shares[lost], label=what)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(_percent)
    ax.axhline(allowed, color="black", linestyle=":", linewidth=1, label=f"{allowed:.1%}, the most to be lost")
    _mark(ax, recommended)
    ax.set_xlim(left=0)
    ax.set_xlabel("maximum length (tokens, end mark counted)")
    ax.set_ylabel("share that is lost")
    ax.grid(alpha=0.3)
    ax.legend()
    save_png(figure, path)


def plot_lengths(path: Path, lengths: Mapping[str, np.ndarray]) -> None:
    """Write a PNG with the histogram of sentence lengths, and that of their ratio in a pair.

    `lengths`: for the source and the target language the tokens of each sentence, (N,) both. The axes end at
    the 99.9 % quantile, and the last bar holds all that is beyond.
    """
    (source, target), (of_source, of_target) = lengths, lengths.values()
    figure = new_figure(width=11, height=4.5)
    left, right = figure.subplots(1, 2)
    longest = int(max(np.quantile(of_side, 0.999, method="inverted_cdf") for of_side in lengths.values()))
    bins = np.arange(-0.5, longest + 1.5, -(-longest // 80))  # whole lengths fall inside of a bin
    for language, of_side in lengths.items():
        label = f"{language} (mean {of_side.mean():.1f}, longest {of_side.max():,})"
        left.hist(of_side.clip(max=bins[-1]), bins=bins, alpha=0.5, label=label)
    left.set_xlabel(f"sentence length (tokens), the last bar {int(bins[-2] + 0.5)} or more")
    left.set_ylabel("sentences")

    both = (of_source > 0) & (of_target > 0)
    ratios = np.log2(of_target[both] / of_source[both])
    reach = max(0.5, float(np.quantile(np.abs(ratios), 0.999, method="inverted_cdf")))
    right.hist(ratios.clip(-reach, reach), bins=np.linspace(-reach, reach, 42), color="tab:green", alpha=0.7)
    right.axvline(0, color="black", linewidth=1)
    right.xaxis.set_major_formatter(lambda log_ratio, _position: f"{2**log_ratio:.2g}")
    right.set_xlabel(f"{target} tokens for each {source} token (logarithmic)")
    right.set_ylabel("pairs")
    left.legend()
    for ax in (left, right):
        ax.yaxis.set_major_formatter(_thousands)
        ax.grid(alpha=0.3)
    save_png(figure, path)


def plot_zipf(path: Path, counts: Mapping[str, np.ndarray]) -> None:
    """Write a PNG of the frequency of each word over its rank, both logarithmic.

    `counts`: for each language the occurrences of each type, (V,). Zipf's law (Human Behavior and the Principle
    of Least Effort, 1949) is the straight line of slope -1, drawn for comparison from the commonest word.
    """
    figure = new_figure(width=7, height=5)
    ax = figure.add_subplot()
    for language, of_types in counts.items():
        falling = np.sort(of_types)[::-1]
        shown = np.unique(np.geomspace(1, len(falling), MAX_POINTS).astype(int))  # ranks
        ax.plot(shown, falling[shown - 1], marker=".", markersize=3, linewidth=1, label=language)
    most = max(int(of_types.max()) for of_types in counts.values())
    ends = np.array([1, min(most, max(len(of_types) for of_types in counts.values()))])
    ax.plot(ends, most / ends, color="black", linestyle=":", linewidth=1, label="Zipf's law")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("rank of the word")
    ax.set_ylabel("occurrences")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower left")
    save_png(figure, path)


def _mark(ax: Axes, recommended: int) -> None:
    ax.axvline(recommended, color="black", linestyle="--", linewidth=1, label=f"recommended: {recommended}")


def _percent(share: float, _position: float) -> str:
    return f"{100 * share:.4g}%"


def _thousands(number: float, _position: int) -> str:
    return f"{number:,.0f}"
