"""The figures of a translation run's folder: curves, sentence lengths and padding, attention."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from data.text.tokenization import TextTokenizer
from data.text.tokenized_text import TokenizedText
from figures.curves import plot_attention, plot_curves, plot_length_histogram
from models.decoding import SpecialTokens, greedy_search

PANELS = {
    "loss": ["train/loss", "train/nll", "valid/nll"],
    "lr": ["lr"],
    "bleu": ["valid/bleu"],
    "throughput": ["train/tokens_per_second"],
}


def attention_examples(
    model,
    sentences: TokenizedText,
    tokenizers: Mapping[str, TextTokenizer],
    special: SpecialTokens,
    device: torch.device,
) -> Iterator[tuple[np.ndarray, list[str], list[str]]]:
    """Of three sentences of some ten tokens: attention weights (H, T, S), source and target tokens.

    `tokenizers`: those of "source" and "target".
    """
    middling = np.argsort(np.abs(sentences.lengths - 10), kind="stable")[:3]
    for sentence in middling.tolist():
        source_ids = [*sentences[sentence].tolist(), special.end]
        source = torch.tensor([source_ids], device=device)
        output = greedy_search(model, source, special)[0]
        weights = model.cross_attention_weights(source, torch.tensor([[special.begin, *output]], device=device))
        target_tokens = tokenizers["target"].tokens([*output, special.end])
        yield weights[0].cpu().numpy(), tokenizers["source"].tokens(source_ids), target_tokens


def plot_translation_run(
    run_dir: Path,
    lengths: dict[str, np.ndarray],
    real_and_padding: tuple[np.ndarray, np.ndarray],
    attentions: Iterable[tuple[np.ndarray, Sequence[str], Sequence[str]]],
) -> list[Path]:
    """Write the figures of the run at `run_dir` as PNG below its figures/; return their paths.

    lengths: for each side ("source", "target") the tokens of each training sentence, (n_sentences,).
    real_and_padding: the tokens of either kind in each batch of an epoch, (n_batches,) both.
    attentions: for each sentence to show, the weights (n_heads, T, S), its S source and T target tokens.
    """
    folder = run_dir / "figures"
    figures = plot_curves(run_dir / "metrics.jsonl", folder, PANELS)
    figures.append(folder / "lengths.png")
    plot_length_histogram(lengths, dict(zip(("real", "padding"), real_and_padding, strict=True)), figures[-1])
    for i, attention in enumerate(attentions, start=1):
        figures.append(folder / f"attention_{i}.png")
        plot_attention(*attention, figures[-1])
    return figures
