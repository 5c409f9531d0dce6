"""Which settings train_translation.py learns a corpus best with, by its validation split.

    python -m benchmarks.translation_settings --corpus de-en=corpus.de.gz,corpus.en.gz --minutes 60 --jobs 4 \
        --output settings.jsonl --precision bf16

Every setting of VARIANTS is a run of its own, without its test split; several corpora and seeds are made of each
before the next one begins. The same command goes on where the time ended (benchmarks/settings_trials.py). With
`--pairs` the runs train on so many pairs of the training split, from all over it, and are validated on the whole
validation split: a setting that was chosen here has not seen the test split that a run on the corpus has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.settings_trials import Precision, Trial, comparison, over_seeds, run_trials
from data.errors import DataError
from data.text.corpus import evenly_spaced, load_text_splits
from data.text.parallel_text import ParallelText
from training.cli import call_with_config, run_tool
from training.errors import UsageError
from training.ranges import Count, PositiveInt, Weight

R_DROP = "--consistency r-drop --consistency_weight 5"
SIMCUT = "--consistency simcut --consistency_weight 3"
VARIANTS = {
    "baseline": "",
    "adamw": "--optimizer adamw --lr 2e-3 --max_tokens 2048",
    "lr 3e-3": "--lr 3e-3",
    "lr 0.01": "--lr 0.01",
    "short rise": "--pct_start 0.1",
    "d_model 320": "--d_model 320 --n_heads 5 --d_ff 1280",
    "8,000 tokens": "--vocab_size 8000",
    "a joint vocabulary of 4,000": "--tied_embeddings three-way --vocab_size 4000",
    "a joint vocabulary of 8,000": "--tied_embeddings three-way --vocab_size 8000",
    "a joint vocabulary of 16,000": "--tied_embeddings three-way --vocab_size 16000",
    "3,000 tokens a language": "--tied_embeddings output --vocab_size 3000",
    "6,000 tokens a language": "--tied_embeddings output --vocab_size 6000",
    "10,000 tokens a language": "--tied_embeddings output --vocab_size 10000",
    "20,000 tokens a language": "--tied_embeddings output --vocab_size 20000",
    "2+2 layers, d_model 320": "--n_encoder_layers 2 --n_decoder_layers 2 --d_model 320 --n_heads 5 --d_ff 1280",
    "updates of 2,048 tokens": "--max_tokens 2048",
    "updates of 2,048 tokens, dropout 0.2": "--max_tokens 2048 --dropout 0.2",
    "dropout 0.2": "--dropout 0.2",
    "dropout 0.3": "--dropout 0.3",
    "simcut 1, dropout 0.2": "--consistency simcut --consistency_weight 1 --dropout 0.2",
    "simcut 3, dropout 0.2": f"{SIMCUT} --dropout 0.2",
    "r-drop 5, dropout 0.2": f"{R_DROP} --dropout 0.2",
    "bpe-dropout 0.1, dropout 0.2": "--bpe_dropout 0.1 --dropout 0.2",
    "masked smoothing, dropout 0.2": "--masked_smoothing --tied_embeddings three-way --dropout 0.2",
    "2,000 tokens, dropout 0.2": "--vocab_size 2000 --dropout 0.2",
    "8,000 tokens, dropout 0.2": "--vocab_size 8000 --dropout 0.2",
    "updates of 1,024 tokens, dropout 0.2": "--max_tokens 1024 --dropout 0.2",
    "updates of 1,024 tokens, 2,000 tokens, dropout 0.2": "--max_tokens 1024 --vocab_size 2000 --dropout 0.2",
    "updates of 1,024 tokens, bpe-dropout 0.1, dropout 0.2": "--max_tokens 1024 --bpe_dropout 0.1 --dropout 0.2",
    "updates of 1,024 tokens, dropout 0.3": "--max_tokens 1024 --dropout 0.3",
    "mean of 5, dropout 0.2": "--average_checkpoints 5 --dropout 0.2",
    "d_model 512, dropout 0.3": "--d_model 512 --n_heads 8 --d_ff 2048 --dropout 0.3",
    "5+5 layers, dropout 0.3": "--n_encoder_layers 5 --n_decoder_layers 5 --dropout 0.3",
    "twice the epochs, dropout 0.3": "--dropout 0.3 --epochs {twice}",
    "simcut 3, dropout 0.3": f"{SIMCUT} --dropout 0.3",
    "simcut 3, 2,000 tokens, dropout 0.2": f"{SIMCUT} --vocab_size 2000 --dropout 0.2",
    "simcut 3, bpe-dropout 0.1, dropout 0.2": f"{SIMCUT} --bpe_dropout 0.1 --dropout 0.2",
    "simcut 3, twice the epochs, dropout 0.3": f"{SIMCUT} --dropout 0.3 --epochs {{twice}}",
    "simcut 3, half the epochs, dropout 0.2": f"{SIMCUT} --dropout 0.2 --epochs {{half}}",
    "r-drop 5, half the epochs, dropout 0.2": f"{R_DROP} --dropout 0.2 --epochs {{half}}",
    "updates of 1,024 tokens": "--max_tokens 1024",
    "5+2 layers": "--n_encoder_layers 5 --n_decoder_layers 2",
    "simcut, bpe-dropout, twice the epochs": f"{SIMCUT} --bpe_dropout 0.1 --dropout 0.3 --epochs {{twice}}",
}


@dataclass(frozen=True)
class Config:
    corpus: tuple[str, ...]  # NAME=SOURCE,TARGET: languages as de-en, and its two line-aligned files
    output: str  # JSON lines, one a run; the runs are written in the folder of that name without its ending
    minutes: Weight  # after which no run is begun, and those that train are stopped and saved
    jobs: PositiveInt = 1  # runs at a time
    precision: Precision = "no"  # mixed precision
    recipe: str = "de-en"  # of train_translation.py, which the settings change
    epochs: PositiveInt = 12  # passes over the training pairs; twice or half as many where a setting says so
    pairs: Count = 0  # training pairs of each corpus, from all over it; 0: all
    seeds: PositiveInt = 1  # runs of each setting: seeds 0, 1, ..
    variants: tuple[str, ...] = ()  # names of settings to try; without any, all


def trials_of(config: Config) -> list[Trial]:
    """The runs that are to be made: of a seed, each setting on each corpus. Raises UsageError and DataError."""
    unknown = [name for name in config.variants if name not in VARIANTS]
    if unknown:
        raise UsageError(f"--variants {unknown[0]!r} is none of: {', '.join(map(repr, VARIANTS))}")
    corpora = {name: data_flags(config, name, files) for name, files in map(parse_corpus, config.corpus)}
    common = (config.recipe, "--no_final_test", "--valid_sentences", "2000", "--epochs", str(config.epochs))
    trials = [
        Trial(f"{corpus}: {name}", (*common, *data, *flags_of(name, config.epochs)))
        for name in config.variants or VARIANTS
        for corpus, data in corpora.items()
    ]
    return over_seeds(trials, config.seeds)


def flags_of(variant: str, epochs: int) -> tuple[str, ...]:
    """What a setting adds to the command line of a run of so many `epochs`."""
    return tuple(VARIANTS[variant].format(twice=2 * epochs, half=math.ceil(epochs / 2)).split())


def parse_corpus(text: str) -> tuple[str, tuple[str, str]]:
    """ "de-en=corpus.de,corpus.en" -> its name and files. Raises UsageError."""
    name, _, files = text.partition("=")
    if len(name.split("-")) != 2 or files.count(",") != 1:
        raise UsageError(f"--corpus {text}: give it as de-en=SOURCE,TARGET")
    source, target = files.split(",")
    return name, (source, target)


def data_flags(config: Config, name: str, files: tuple[str, str]) -> tuple[str, ...]:
    """The flags that name a corpus, or with --pairs what is written of it."""
    languages = name.split("-")
    flags = ("--languages", *languages, "--train_files")
    if config.pairs == 0:
        return (*flags, *(str(Path(path).resolve()) for path in files))
    splits = load_text_splits("", "", (languages[0], languages[1]), train_files=files)
    train = splits.train.select(evenly_spaced(len(splits.train), config.pairs))
    stem = Path(config.output).resolve().with_suffix("") / "corpora" / f"{name}-{len(train)}"
    train_files = write(train, f"{stem}.train", languages)
    valid_files = write(splits.valid, f"{stem}.valid", languages)
    # The test split is not read, but for pictures of the attention.
    return (*flags, *train_files, "--valid_files", *valid_files, "--test_files", *valid_files)


def write(text: ParallelText, stem: str, languages: Sequence[str]) -> list[str]:
    """A file a language, a sentence a line; their paths."""
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    paths = [f"{stem}.{language}" for language in languages]
    for path, lines in zip(paths, (text.sources, text.targets), strict=True):
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def report(config: Config) -> None:
    """Make the runs, and print a table for each corpus."""
    lines = run_trials(
        "train_translation.py",
        trials_of(config),
        minutes=config.minutes,
        jobs=config.jobs,
        output=Path(config.output),
        precision=config.precision,
    )
    for corpus, _ in map(parse_corpus, config.corpus):
        prefix = f"{corpus}: "
        own = [
            line | {"name": line["name"].removeprefix(prefix)} for line in lines if line["name"].startswith(prefix)
        ]
        print(f"\n{corpus}: BLEU of the validation split, translated greedily")
        print(comparison(own, "bleu", higher_is_better=True))


def main(args: list[str] | None = None) -> None:
    """Run from the command line; exits with code 2, after one line, where a flag or a corpus cannot be used."""
    call_with_config(report, Config, __doc__ or "", args, (DataError,))


if __name__ == "__main__":
    run_tool(main)
