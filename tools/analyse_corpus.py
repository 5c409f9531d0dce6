"""What is in a parallel corpus, and which minimum frequency and maximum length to train a word-level model with.

    python -m tools.analyse_corpus --train_files corpus.de.gz corpus.en.gz
    python -m tools.analyse_corpus --dataset phrasebook

Any corpus that train_translation.py accepts, named by the same flags, read and split in the same way. The
report goes to stdout and <output_dir>/corpus_report.txt, its numbers to report.json, figures to figures/.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import DataError
from data.text.corpus import CorpusSplits, load_text_splits
from data.text.corpus_statistics import (
    HIGHEST_MIN_FREQUENCY,
    MAX_ADDED_UNKNOWN,
    MAX_LOST_TOKENS,
    CorpusAnalysis,
    analyse,
    length_ratio_summary,
    length_summary,
    number_words,
    words_by_occurrences,
)
from data.text.small_corpus import LARGEST, SMALLEST, CorpusSettings, settings_for
from figures.corpus import plot_length_losses, plot_lengths, plot_occurrences, plot_unknown, plot_zipf
from figures.images import format_table
from training.cli import PathFlag, call_with_config, run_tool
from training.ranges import LengthRatio, ShareBelowOne
from training.redaction import redacted

MAX_LENS = (128, 96, 64, 48, 42, 32, 24, 16)
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
WAYS = {"digits": "its digits", "whole": "one token", "masked": "<num>"}
FEW_TOKENS = 2000  # of validation: the rule's one percent is then a matter of some twenty tokens
EXAMPLE_CHARACTERS = 100  # shown of each side
COUNT, SHARE, TEXT = "{:,}", "{:.2%}", "{}"  # formats

Languages = tuple[str, str]  # the names of source and target


@dataclass(frozen=True)
class Config:
    dataset: str = "Helsinki-NLP/opus_books"  # data set on the hub, or "phrasebook" (embedded)
    dataset_config: str = "en-it"  # configuration of the data set on the hub
    dataset_revision: str = ""  # branch, tag or commit of the data set on the hub; default: its main branch
    languages: tuple[str, str] | None = None  # source and target; default: en it, or as two files' names end
    data_dir: PathFlag = ""  # folder with the data set's parquet or line-aligned files, instead of the hub
    train_files: tuple[PathFlag, ...] = ()  # own corpus: SOURCE TARGET (a sentence a line), or .tsv, .csv, .json[l]
    valid_files: tuple[PathFlag, ...] = ()  # likewise; without them, split off the training files by hash
    test_files: tuple[PathFlag, ...] = ()  # likewise
    extra_test_files: tuple[PathFlag, ...] = ()  # a further test set, whose sentences leave training; not counted
    valid_fraction: ShareBelowOne = 0.02  # share of the sources split off for validation
    test_fraction: ShareBelowOne = 0.02  # share of the sources split off for the test
    max_length_ratio: LengthRatio = 0.0  # longer side to shorter, in characters; 0: three times the usual ratio
    lowercase: bool = False  # count lower-cased text
    output_dir: PathFlag = ""  # where the report is written; default runs/corpus/<name of the corpus>
    tracker: Literal["wandb", "none"] = "none"  # where tables and figures go besides output_dir


@dataclass(frozen=True)
class Table:
    """A section of the report: `columns` map each header to the format of its values."""

    name: str  # in report.json and W&B
    title: str
    columns: dict[str, str]
    rows: list[list]

    def lines(self) -> list[str]:
        """The title and the aligned rows."""
        forms = self.columns.values()
        cells = [[form.format(value) for form, value in zip(forms, row, strict=True)] for row in self.rows]
        align = "".join("l" if form == TEXT else "r" for form in forms)
        lines = format_table(list(self.columns), cells, align=align)
        return [self.title, *(f"  {line}".rstrip() for line in lines)]


def tables(analysis: CorpusAnalysis, languages: Languages) -> list[Table]:
    """All sections with numbers, in the order of the report."""
    train, losses = analysis.counted["train"], analysis.losses
    sides = list(zip(languages, train, strict=True))

    def both(columns: dict[str, str]) -> dict[str, str]:
        return {f"{language} {name}": form for language in languages for name, form in columns.items()}

    def of_vocabulary(side: int, f: int) -> list:
        shares = [float(analysis.unknown[split][side, f]) for split in ("valid", "test")]
        return [int(analysis.vocabulary[side, f]), *shares]

    sizes = Table(
        "sizes",
        "Sizes",
        {
            "split": TEXT,
            "language": TEXT,
            "sentences": COUNT,
            "tokens": COUNT,
            "types": COUNT,
            "types/tokens": "{:.4f}",
        },
        [
            [title, language, len(side.lengths), side.n_tokens, side.n_types, side.n_types / side.n_tokens]
            for name, title in SPLITS.items()
            for language, side in zip(languages, analysis.counted[name], strict=True)
        ],
    )
    occurrences = Table(
        "occurrences",
        "Words by number of occurrences in training: types and tokens, and their shares of all",
        {"occurrences": TEXT, **both({"types": COUNT, "of types": SHARE, "tokens": COUNT, "of tokens": SHARE})},
        [
            [*source.values(), *list(target.values())[1:]]
            for source, target in zip(*map(words_by_occurrences, train), strict=True)
        ],
    )
    unknown = Table(
        "unknown",
        "Entries of the vocabulary, special tokens counted, and share of held-out tokens unknown",
        {"min_frequency": TEXT, **both({"entries": COUNT, "validation": SHARE, "test": SHARE})},
        [[f + 1, *of_vocabulary(0, f), *of_vocabulary(1, f)] for f in range(HIGHEST_MIN_FREQUENCY)],
    )
    of_language = [(language, number_words(side)) for language, side in sides]
    numbers = Table(
        "numbers",
        "Digits and numbers in training",
        {
            "language": TEXT,
            "tokens with digits": COUNT,
            "of tokens": SHARE,
            "types with digits": COUNT,
            "numbers": COUNT,
            "distinct numbers": COUNT,
        },
        [
            [
                language,
                n["digit_tokens"],
                n["digit_token_share"],
                n["digit_types"],
                n["numbers"],
                n["distinct_numbers"],
            ]
            for language, n in of_language
        ],
    )
    ways = Table(
        "number_ways",
        "The same text with numbers digit by digit (as the word tokenizer has them), whole, and masked",
        {"language": TEXT, "each number as": TEXT, "types": COUNT, "fewer than whole": COUNT, "tokens": COUNT},
        [
            [
                language,
                title,
                n["ways"][way]["types"],
                n["ways"]["whole"]["types"] - n["ways"][way]["types"],
                n["ways"][way]["tokens"],
            ]
            for language, n in of_language
            for way, title in WAYS.items()
        ],
    )
    lengths = Table(
        "lengths",
        "Tokens of a training sentence, end mark not counted: mean, median, quantiles",
        {
            "language": TEXT,
            "mean": "{:.2f}",
            "median": "{:g}",
            "90 %": COUNT,
            "95 %": COUNT,
            "99 %": COUNT,
            "max": COUNT,
        },
        [[language, *length_summary(side.lengths).values()] for language, side in sides],
    )
    ratio = Table(
        "length_ratio",
        f"{languages[1]} tokens for each {languages[0]} token of a training pair: mean, quantiles",
        {name: "{:.2f}" for name in ("mean", "1 %", "5 %", "median", "95 %", "99 %")},
        [list(length_ratio_summary(*train).values())],
    )
    too_long = Table(
        "too_long",
        "Share of training lost at a maximum length: either side, end mark counted, is longer",
        {"max_len": TEXT, "pairs": "{:.3%}", **both({"tokens": "{:.3%}"})},
        [[max_len, *losses.at(max_len).values()] for max_len in MAX_LENS],
    )
    suspicious = Table(
        "suspicious",
        "Duplicates and suspicious pairs in training, after what cleaning has dropped",
        {"what": TEXT, "count": COUNT, "share": SHARE, "of": COUNT, "unit": TEXT},
        [[f.name, f.count, f.count / f.total, f.total, f.unit] for f in analysis.findings],
    )
    return [sizes, occurrences, unknown, numbers, ways, lengths, ratio, too_long, suspicious]


def example_lines(analysis: CorpusAnalysis) -> list[str]:
    """Up to five pairs of each kind that was found, a line for each side, shortened."""

    def shown(text: str) -> str:
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)  # no terminal escapes
        return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"

    lines = []
    for finding in analysis.findings:
        if finding.examples:
            lines.append(f"  {finding.name}")
        for source, target in finding.examples:
            lines += [f"    {shown(source)}", f"      -> {shown(target)}"]
    return ["Examples", *lines] if lines else []


def recommendation(analysis: CorpusAnalysis, languages: Languages) -> list[str]:
    """The settings, the rule behind each and the numbers that it was applied to."""
    min_frequency, max_len = analysis.min_frequency, analysis.max_len
    shares = analysis.unknown["valid"]

    def of_each(values, form: str = SHARE) -> str:
        return ", ".join(f"{language} {form.format(v)}" for language, v in zip(languages, values, strict=True))

    def lost(max_len: int) -> str:
        pairs, *tokens = analysis.losses.at(max_len).values()
        return f"{of_each(tokens, '{:.3%}')} of the tokens, {pairs:.3%} of the pairs"

    lines = [
        f"Recommendation: --tokenizer word --min_frequency {min_frequency} --vocab_size {analysis.vocab_size} "
        f"--max_len {max_len}",
        f"  --min_frequency {min_frequency}",
        f"    The greatest, up to {HIGHEST_MIN_FREQUENCY}, that makes at most {MAX_ADDED_UNKNOWN:.0%} of the "
        "validation tokens unknown, in either language,",
        f"    besides those that training never has ({of_each(shares[:, 0])}).",
    ]
    lines += [
        f"    At {f} it makes {of_each(of_f - shares[:, 0])} unknown; {of_each(of_f)} in all."
        for f, of_f in enumerate(shares.T, start=1)
        if f in (min_frequency, min_frequency + 1)
    ]
    n_tokens = [side.n_tokens for side in analysis.counted["valid"]]
    if min(n_tokens) < FEW_TOKENS:
        lines.append(f"    Uncertain: validation has but few tokens ({of_each(n_tokens, COUNT)}).")
    lines += [
        f"    For each language alone: {of_each(analysis.min_frequencies, '{}')}.",
        f"  --max_len {max_len}",
        f"    The smallest that loses at most {MAX_LOST_TOKENS:.1%} of the training tokens of either language.",
        *(f"    At {n} it loses {lost(n)}." for n in (max_len, max_len - 1)),
        f"  --vocab_size {analysis.vocab_size}",
        "    The entries of the larger vocabulary at that frequency; a joint one, for both languages, has at most "
        f"{analysis.vocabulary[:, min_frequency - 1].sum()}.",
    ]
    return lines


def transformer_lines(splits: CorpusSplits, settings: CorpusSettings) -> list[str]:
    """What train_translation.py's recipe small-corpus makes of the corpus."""
    n_pairs = len(splits.train)
    lines = [
        f"For a Transformer: train_translation.py small-corpus, which takes for {n_pairs:,} training pairs",
        f"  {settings.flags()}",
    ]
    if not SMALLEST <= n_pairs <= LARGEST:
        lines.append(f"  Uncertain: the rule is made for {SMALLEST:,} to {LARGEST:,} pairs.")
    return lines


def report_text(
    name: str,
    splits: CorpusSplits,
    sections: list[Table],
    analysis: CorpusAnalysis,
    settings: CorpusSettings,
    languages: Languages,
) -> str:
    """The whole report as text."""
    counts = ", ".join(f"{key} {count:,}" for key, count in splits.counts.items())
    loaded = f"Loaded: {counts or 'embedded, neither cleaned nor split'}"
    blocks = [
        [f"Corpus {name}, {' to '.join(languages)}, in tokens of the word tokenizer", loaded, *splits.notes],
        *(section.lines() for section in sections),
        example_lines(analysis),
        recommendation(analysis, languages),
        transformer_lines(splits, settings),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def report_numbers(
    config: Config,
    counts: dict[str, int],
    sections: list[Table],
    analysis: CorpusAnalysis,
    settings: CorpusSettings,
    languages: Languages,
) -> dict:
    """What report.json holds: every number of the report, unrounded, and the examples."""
    return {
        "config": asdict(config),
        "languages": languages,
        "loaded": counts,
        **{t.name: [dict(zip(t.columns, row, strict=True)) for row in t.rows] for t in sections},
        "findings": [asdict(finding) for finding in analysis.findings],
        "recommendation": {
            "min_frequency": analysis.min_frequency,
            "min_frequency_by_language": dict(zip(languages, analysis.min_frequencies, strict=True)),
            "max_len": analysis.max_len,
            "vocab_size": analysis.vocab_size,
            "max_added_unknown": MAX_ADDED_UNKNOWN,
            "max_lost_tokens": MAX_LOST_TOKENS,
            "transformer": asdict(settings),
        },
    }


def write_figures(folder: Path, analysis: CorpusAnalysis, languages: Languages) -> list[Path]:
    """All figures as PNG files in `folder`."""

    def of_sides(values) -> dict:
        return dict(zip(languages, values, strict=True))

    train = analysis.counted["train"]
    counts = of_sides([np.fromiter(side.occurrences.values(), np.int64) for side in train])
    unknown = {SPLITS[split]: of_sides(shares) for split, shares in analysis.unknown.items()}
    pairs, *tokens = analysis.losses.pairs, analysis.losses.source_tokens, analysis.losses.target_tokens
    losses = {"pairs": pairs} | {f"{language} tokens": shares for language, shares in of_sides(tokens).items()}
    paths = [folder / f"{name}.png" for name in ("occurrences", "unknown", "too_long", "lengths", "zipf")]
    plot_occurrences(paths[0], counts)
    plot_unknown(paths[1], unknown, of_sides(analysis.vocabulary), analysis.min_frequency)
    plot_length_losses(paths[2], losses, analysis.max_len, MAX_LOST_TOKENS)
    plot_lengths(paths[3], of_sides([side.lengths for side in train]))
    plot_zipf(paths[4], counts)
    return paths


def track(config: Config, name: str, output_dir: Path, sections: list[Table], figures: list[Path]) -> None:
    """Send tables and figures to W&B, offline where it is not logged in. Whatever W&B does, the report stands."""
    try:
        import wandb

        from training.tracking import PROJECT, tracked_settings

        try:
            logged_in = wandb.login(prompt=False)
        except wandb.Error:  # there is a key, but it is wrong or there is no network
            logged_in = False
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        run = wandb.init(
            project=PROJECT,
            group="corpus",
            job_type=name,
            name=f"corpus/{name}",
            config=tracked_settings("corpus", config),
            dir=str(output_dir),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.log(
            {f"tables/{t.name}": wandb.Table(columns=list(t.columns), data=t.rows) for t in sections}
            | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
        )
        folder = Path(run.dir).parent
        run.finish()
        if mode == "offline":
            print(f"W&B is offline: to upload this report later, `wandb sync {folder}`")
    except Exception as error:  # whatever W&B does, the tool goes on
        print(f"warning: W&B failed, the report is in {output_dir} alone: {redacted(repr(error))}", file=sys.stderr)


def corpus_name(config: Config) -> tuple[str, Languages]:
    """Name of the corpus, for its folder, and of its languages: as the flags or the files have them."""
    languages = config.languages or ("en", "it")
    if config.train_files:
        names = [Path(path).name.removesuffix(".gz") for path in config.train_files]
        stems, suffixes = [Path(name).stem for name in names], [Path(name).suffix[1:] for name in names]
        if config.languages is None and not {"jsonl", "json", "csv", "parquet"} & set(suffixes):
            named = len(names) == 2 and len(set(suffixes)) == 2 and all(suffixes)
            languages = (suffixes[0], suffixes[1]) if named else ("source", "target")
        name = "_".join(dict.fromkeys(stems))
    elif config.dataset == "phrasebook":
        name = "phrasebook"
    elif config.data_dir:
        name = f"{Path(config.data_dir).resolve().name}.{'-'.join(languages)}"
    else:
        name = f"{Path(config.dataset).name}.{config.dataset_config}"
    return name, languages if languages[0] != languages[1] else ("source", "target")


def report(config: Config) -> None:
    """Load, count, write and print. Raises DataError for a corpus that cannot be used."""
    name, languages = corpus_name(config)
    splits = load_text_splits(
        config.dataset,
        config.dataset_config,
        config.languages or ("en", "it"),
        data_dir=config.data_dir or None,
        dataset_revision=config.dataset_revision or None,
        train_files=config.train_files,
        valid_files=config.valid_files,
        test_files=config.test_files,
        extra_test_files=config.extra_test_files,
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction,
        max_length_ratio=config.max_length_ratio,
    )
    analysis = analyse(splits, config.lowercase)
    sections = tables(analysis, languages)
    settings = settings_for((splits.lowercased() if config.lowercase else splits).train)
    text = report_text(name, splits, sections, analysis, settings, languages)
    numbers = report_numbers(config, splits.counts, sections, analysis, settings, languages)

    output_dir = Path(config.output_dir or f"runs/corpus/{name}")
    try:
        figures = write_figures(output_dir / "figures", analysis, languages)
        (output_dir / "corpus_report.txt").write_text(f"{text}\n", encoding="utf-8")
        (output_dir / "report.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise DataError(f"cannot write to {output_dir} ({error.strerror}): name another --output_dir") from error
    print(f"{text}\n\ncorpus_report.txt, report.json and figures/ are in {output_dir}", flush=True)
    if config.tracker == "wandb":
        pairs = [[finding.name, *pair] for finding in analysis.findings for pair in finding.examples]
        examples = Table("examples", "Examples", dict.fromkeys(("what", *languages), TEXT), pairs)
        track(config, name, output_dir, [*sections, examples], figures)


def main(args: list[str] | None = None) -> None:
    """Run from the command line; exits with code 2, after one line, where a corpus cannot be used."""
    try:
        call_with_config(report, Config, __doc__ or "", args, (DataError,))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_tool(main)
