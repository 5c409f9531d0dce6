"""A run of train_translation.py on other sentences: BLEU, chrF, the translations, its attention."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.text.corpus import read_heldout
from data.text.tokenized_text import TokenizedPairs
from data.text.word_by_word import encode_column
from figures.curves import plot_attention
from figures.translation import attention_examples
from tools.evaluation.request import Request, figures_below
from tools.translate import Translator
from train_translation import SPECIAL, evaluate
from training.bleu_tokenizer import choose_bleu_tokenizer
from training.translation_scores import write_translations


def evaluate_translation(
    run: str, accelerator: Accelerator, request: Request, folder: Path
) -> tuple[dict[str, Any], str]:
    """Translate the files' sources as the run's own test did, and score them against their targets.

    Writes translations/test.{src,hyp,ref}.txt and figures/attention_*.png into `folder`. Returns the metrics and
    what to print. Raises UsageError and DataError.
    """
    translator = Translator(run, accelerator.device)
    config = translator.config
    if request.length_penalty is not None:
        config = replace(config, length_penalty=request.length_penalty)
    text = read_heldout(request.test_files, config.languages, config.lowercase)
    bleu_tokenizer, note = choose_bleu_tokenizer(config.bleu_tokenizer, config.languages[1], text.targets)
    config = replace(config, bleu_tokenizer=bleu_tokenizer)
    tokenizers = {"source": translator.source_tokenizer, "target": translator.target_tokenizer}
    whole = TokenizedPairs(
        encode_column(tokenizers["source"], text.sources), encode_column(tokenizers["target"], text.targets)
    )
    most = config.eval_max_len - 1  # the end mark comes on top
    n_cut = int((whole.source.lengths > most).sum())
    pairs = TokenizedPairs(whole.source.cut(most), whole.target.cut(most))
    metrics, translations = evaluate(
        accelerator,
        translator.model,
        pairs,
        text,
        tokenizers["target"],
        config,
        beam_size=request.beam_size or config.beam_size,
    )
    figures = figures_below(folder)
    write_translations(folder / "translations", "test", translations)
    attentions = attention_examples(translator.model, pairs.source, tokenizers, SPECIAL, accelerator.device)
    for i, attention in enumerate(attentions, start=1):
        plot_attention(*attention, figures / f"attention_{i}.png")
    report = [
        f"BLEU {metrics['bleu']:.2f}  {metrics['bleu_signature']}",
        f"chrF {metrics['chrf']:.2f}  {metrics['chrf_signature']}",
        f"{len(text):,} sentences, brevity penalty {metrics['brevity_penalty']:.3f}, loss {metrics['nll']:.3f}"
        + (f"; {n_cut:,} of them cut after {config.eval_max_len:,} tokens" if n_cut else ""),
        note,
    ]
    return {**metrics, "n_sources_cut": n_cut}, "\n".join(filter(None, report))
