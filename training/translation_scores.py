"""BLEU and chrF of a whole data set that several processes translate together, and how a run reports them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sacrebleu
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.text.near_duplicates import near_duplicates
from training.metrics import prefixed
from training.run import Run


def translate_in_shares(
    accelerator: Accelerator, n_sentences: int, translate: Callable[[range], Sequence[str]]
) -> list[str]:
    """Every process calls `translate` with the numbers of its sentences; all get all translations, in order.

    Each sentence goes to one process and comes back with its number, so that none counts twice.
    """
    mine = range(accelerator.process_index, n_sentences, accelerator.num_processes)
    translated = list(zip(mine, translate(mine), strict=True))
    if accelerator.num_processes > 1:
        translated = gather_object(translated)
    if sorted(number for number, _ in translated) != list(range(n_sentences)):
        raise RuntimeError(f"{len(translated)} translations of {n_sentences} sentences were gathered")
    return [translation for _, translation in sorted(translated)]


@dataclass(frozen=True)
class Translations:
    """What was translated: sentence i of each belongs together."""

    sources: list[str]
    hypotheses: list[str]
    references: list[str]

    def __len__(self) -> int:
        return len(self.hypotheses)

    def select(self, indices: Sequence[int]) -> "Translations":
        """Those sentences alone."""
        return Translations(
            *([side[i] for i in indices] for side in (self.sources, self.hypotheses, self.references))
        )


def score_translations(
    hypotheses: list[str], references: list[str], tokenizer: str = "13a", lowercase: bool = False
) -> dict[str, float | int | str]:
    """sacreBLEU and chrF of plain text, with sacreBLEU's signatures.

    tokenizer: sacreBLEU's for BLEU.
    lowercase: the text is lower-cased, which the signatures are to say; the scores are the same without.

    Returns "bleu" and "chrf" (both 0 to 100), "brevity_penalty" (1: long enough; what BLEU is multiplied by),
    "n_sentences", "bleu_signature" and "chrf_signature".
    """
    bleu, chrf = sacrebleu.BLEU(tokenize=tokenizer, lowercase=lowercase), sacrebleu.CHRF(lowercase=lowercase)
    corpus_bleu = bleu.corpus_score(hypotheses, [references])
    return {
        "bleu": corpus_bleu.score,
        "brevity_penalty": corpus_bleu.bp,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
        "n_sentences": len(hypotheses),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


LOWEST_TELLING_BLEU = 1.0  # what is below says little: hardly a word in common, or text without spaces


def is_better(metrics: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Whether validation `metrics` ("bleu", "chrf", "nll") beat the `best` so far, of the same names.

    The higher BLEU wins; while it is below 1 on both sides, the higher chrF, which needs no words in common;
    among equals, the lower loss.
    """

    def rank(values: Mapping[str, float]) -> tuple[float, float, float]:
        telling = values["bleu"] >= LOWEST_TELLING_BLEU
        return values["bleu"] if telling else 0.0, 0.0 if telling else values["chrf"], -values["nll"]

    return rank(metrics) > rank(best)


def scores_without_near_duplicates(
    translations: Translations, training_sources: Sequence[str], tokenizer: str = "13a", lowercase: bool = False
) -> dict[str, float]:
    """BLEU on the sentences whose source is no near-duplicate of a training source, and the share of the others.

    Returns "near_duplicates" (0 to 1) and "bleu_without_near_duplicates", which is left out where all are.
    """
    near = near_duplicates(translations.sources, training_sources)
    scores = {"near_duplicates": float(near.mean())}
    rest = translations.select(np.flatnonzero(~near).tolist())
    if len(rest) > 0:
        scored = score_translations(rest.hypotheses, rest.references, tokenizer, lowercase)
        scores["bleu_without_near_duplicates"] = float(scored["bleu"])
    return scores


def report_translations(
    run: Run, name: str, metrics: dict, translations: Translations, step: int, epoch: float
) -> dict:
    """Log and print what a finished model reaches on the data set `name`; return it as "<name>/..".

    `metrics` are those of `score_translations` and `scores_without_near_duplicates`, and others beside. The
    sentences go to translations/<name>.src.txt, .hyp.txt and .ref.txt, a line each, for the `sacrebleu` command.
    """
    sources, hypotheses, references = translations.sources, translations.hypotheses, translations.references
    run.log(prefixed(name, metrics), step, epoch)
    run.log_samples(name, sources, hypotheses, references, step, n=5)
    rest = metrics.get("bleu_without_near_duplicates")
    n_rest = round((1 - metrics["near_duplicates"]) * len(translations))
    n, n_cut = metrics["n_sentences"], metrics.get("n_sources_cut", 0)
    n_all = metrics.get("n_sentences_in_split", n)
    run.print(
        f"{name} BLEU {metrics['bleu']:.2f}  {metrics['bleu_signature']}\n"
        f"{name} brevity penalty {metrics['brevity_penalty']:.3f}\n"
        f"{name} chrF {metrics['chrf']:.2f}  {metrics['chrf_signature']}\n"
        f"{n:,} {f'of the {n_all:,} ' if n < n_all else ''}{name} sentences"
        + (f", {n_cut:,} of them cut at --eval_max_len" if n_cut else "")
        + (", in lower case" if "|case:lc|" in metrics["bleu_signature"] else "")
        + f"; {metrics['near_duplicates']:.1%} are at most one word away from a training source: "
        + ("none is left" if rest is None else f"BLEU {rest:.2f} on the other {n_rest:,}")
    )
    if run.accelerator.is_main_process:
        write_translations(run.output_dir / "translations", name, translations)
    return {f"{name}/{key}": value for key, value in metrics.items()}


def write_translations(folder: Path, name: str, translations: Translations) -> None:
    """Write <name>.src.txt, .hyp.txt and .ref.txt, a sentence a line, for the `sacrebleu` command."""
    folder.mkdir(exist_ok=True)
    sides = {"src": translations.sources, "hyp": translations.hypotheses, "ref": translations.references}
    for kind, lines in sides.items():
        (folder / f"{name}.{kind}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
