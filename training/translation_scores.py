"""BLEU and chrF of a whole data set that several processes translate together, and how a run reports them."""

from collections.abc import Callable, Sequence

import sacrebleu
from accelerate import Accelerator
from accelerate.utils import gather_object

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


def score_translations(hypotheses: list[str], references: list[str]) -> dict[str, float | int | str]:
    """sacreBLEU and chrF of plain text, cased as it is, with sacreBLEU's signatures.

    Returns "bleu" and "chrf" (both 0 to 100), "n_sentences", "bleu_signature" and "chrf_signature".
    """
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    return {
        "bleu": bleu.corpus_score(hypotheses, [references]).score,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
        "n_sentences": len(hypotheses),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def numbers(metrics: dict, prefix: str) -> dict[str, float]:
    """The metrics that are numbers, as "<prefix>/<name>"."""
    return {f"{prefix}/{name}": value for name, value in metrics.items() if not isinstance(value, str)}


def report_translations(
    run: Run, name: str, metrics: dict, sources: list[str], hypotheses: list[str], references: list[str],
    step: int, epoch: float,
) -> dict:  # fmt: skip
    """Log and print what a finished model reaches on the data set `name`; return it as "<name>/..".

    `metrics` are those of `score_translations`, and others beside. The sentences go to
    translations/<name>.src.txt, .hyp.txt and .ref.txt, a line each, for the `sacrebleu` command.
    """
    run.log(numbers(metrics, name), step, epoch)
    run.log_samples(sources, hypotheses, references, step, n=5)
    run.print(
        f"{name} BLEU {metrics['bleu']:.2f}  {metrics['bleu_signature']}\n"
        f"{name} chrF {metrics['chrf']:.2f}  {metrics['chrf_signature']}\n"
        f"{metrics['n_sentences']:,} {name} sentences"
    )
    if run.accelerator.is_main_process:
        folder = run.output_dir / "translations"
        folder.mkdir(exist_ok=True)
        for kind, lines in (("src", sources), ("hyp", hypotheses), ("ref", references)):
            (folder / f"{name}.{kind}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {f"{name}/{key}": value for key, value in metrics.items()}
