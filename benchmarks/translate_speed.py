"""How fast and how well a run's test sentences are translated: by `tools.translate` and by CTranslate2.

    python -m benchmarks.translate_speed runs/translation/de-en
    taskset -c 0,1 python -m benchmarks.translate_speed runs/translation/de-en --sentences 500 --output speed.json

All take the same sentences, beams and length penalty, one after the other and several times over, so that what else
the machine does meets all of them. The command is timed as users run it, with all sentences and with one: the time
of the one, which is that of starting and loading, is taken off. A line of the table: the median of sentences a
second, how many times the first line's that is, BLEU, chrF, and the share of lines that differ from the first
line's. Needs `pip install ctranslate2`.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro
from tabulate import tabulate
from tyro.conf import Positional

from train_translation import OLD_RULES, Config
from training.bleu_tokenizer import choose_bleu_tokenizer
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.finished_run import open_run
from training.ranges import BatchSize, BeamSize, PositiveInt
from training.translation_scores import score_translations

ENGINES = {
    "tools.translate": (),
    **{
        f"ctranslate2 {kind}": ("--engine", "ctranslate2", "--quantization", kind)
        for kind in ("float32", "int8", "int8_float32")
    },
}


@dataclass
class Measured:
    """What an engine gave: the sentences a second of each round, and its translations."""

    sentences_per_second: list[float] = field(default_factory=list)
    translations: list[str] = field(default_factory=list)


def test_sentences(run: Path, n: int) -> tuple[list[str], list[str]]:
    """At most `n` sources and references of a run's translated test split, evenly spaced."""
    texts = []
    for kind in ("src", "ref"):
        path = run / "translations" / f"test.{kind}.txt"
        try:
            texts.append(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: name a run that has translated its test split") from error
    step = max(1, len(texts[0]) // n)
    return texts[0][::step][:n], texts[1][::step][:n]


def timed(command: list[str], lines: list[str]) -> tuple[float, list[str]]:
    """The seconds that a command takes which translates lines of stdin, and what it prints."""
    start = time.perf_counter()
    done = subprocess.run(command, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UsageError(done.stderr.strip().removeprefix("error: "))
    return seconds, done.stdout.removesuffix("\n").split("\n")


def measure(run: str, sources: list[str], flags: list[str], repeats: int) -> dict[str, Measured]:
    """All engines in turn, `repeats` times."""
    measured = {name: Measured() for name in ENGINES}
    for _ in range(repeats):
        for name, of_engine in ENGINES.items():
            command = [sys.executable, "-m", "tools.translate", run, *of_engine, *flags]
            loading, _ = timed(command, sources[:1])
            seconds, translations = timed(command, sources)
            if seconds <= loading:
                raise UsageError(f"{name}: {len(sources)} sentences are too few to be timed: give more --sentences")
            measured[name].sentences_per_second.append((len(sources) - 1) / (seconds - loading))
            measured[name].translations = translations
    return measured


def main(
    run: Positional[PathFlag],
    sentences: Annotated[PositiveInt, tyro.conf.arg(help="most test sentences translated")] = 1000,
    beam_size: Annotated[BeamSize | None, tyro.conf.arg(help="beams; default: as the run was evaluated")] = None,
    batch_size: Annotated[BatchSize, tyro.conf.arg(help="most sentences translated at a time")] = 64,
    repeats: Annotated[PositiveInt, tyro.conf.arg(help="rounds over all engines")] = 3,
    output: Annotated[PathFlag, tyro.conf.arg(help="JSON file for all numbers")] = "",
) -> None:
    """Print a table of speed and quality on a run's test sentences.

    Args:
        run: run folder of train_translation.py
    """
    try:
        config = open_run(run, "translation", Config, OLD_RULES).config
        sources, references = test_sentences(Path(run), sentences)
        beams = config.beam_size if beam_size is None else beam_size
        flags = ["--beam_size", str(beams), "--batch_size", str(batch_size)]
        measured = measure(run, sources, flags, repeats)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    tokenizer, _ = choose_bleu_tokenizer(config.bleu_tokenizer, config.languages[1], references)
    first = measured["tools.translate"]
    rows, numbers = [], {}
    for name, found in measured.items():
        scores = score_translations(found.translations, references, tokenizer, config.lowercase)
        pairs = zip(found.translations, first.translations, strict=True)
        differing = sum(a != b for a, b in pairs) / len(sources)
        speed = median(found.sentences_per_second)
        times = speed / median(first.sentences_per_second)
        rows.append(
            [
                name,
                f"{speed:.1f}",
                f"{times:.2f}",
                f"{scores['bleu']:.2f}",
                f"{scores['chrf']:.2f}",
                f"{differing:.1%}",
            ]
        )
        numbers[name] = {
            "sentences_per_second": found.sentences_per_second,
            "bleu": scores["bleu"],
            "chrf": scores["chrf"],
            "differing": differing,
        }
    print(f"{len(sources):,} sentences, beam {beams}")
    print(tabulate(rows, ["engine", "sentences/s", "times", "BLEU", "chrF", "differing"], disable_numparse=True))
    if output:
        Path(output).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
