"""Training speed of train_translation.py beside that of Eole, the same net on the same tokens, in one run.

    python -m benchmarks.translation_peers --eole eole/bin/eole --train_files corpus.en.gz corpus.it.gz

eole/bin/eole is the program of a virtual environment in which `pip install eole` was run. Each takes turns as a
program of its own, from its command line, and is timed by what it logs, from its first report on. Both train a
pre-norm Transformer with one joint vocabulary and tied embeddings (12,608 numbers more in Eole: a bias of its
logits and of the last product in attention), by AdamW, with dropout 0.1, label smoothing 0.1, and at most
`--max_tokens` tokens of the longer side an update. Eole reads the tokens of our vocabulary, spares its statistics
of attention entropy, and loads its batches without further processes, which is faster on few cores.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import yaml

from benchmarks.settings_trials import Precision
from benchmarks.turns import Speeds, ratio_text
from data.errors import DataError
from data.text.corpus import TranslationCorpus, load_text_splits
from data.text.tokenization import EOS_ID
from data.text.tokenized_text import TokenizedPairs
from training.cli import PathFlag, call_with_config, run_tool
from training.errors import UsageError
from training.ranges import PositiveInt, TokenBudget, VocabularySize, Weight, Width

ROOT = Path(__file__).resolve().parents[1]
EVERY = 10  # updates between two reports
LOOKS_EVERY = 0.5  # seconds
MOST_SECONDS = 300.0  # until a first report
# [2026-01-31 12:00:00,123 INFO] Step 20/1000; .. bsz: 3212/3605/198; ..: source tokens, target tokens, sentences
EOLE_REPORT = re.compile(r"\[(\S+ \S+) INFO\] Step \d+/.*bsz:\s*\d+/\s*(\d+)/")


@dataclass(frozen=True)
class Config:
    eole: PathFlag  # the program `eole` of an environment that has it
    train_files: tuple[PathFlag, PathFlag]  # two line-aligned files
    precisions: tuple[Precision, ...] = ("no", "bf16")  # mixed precision of both
    d_model: Width = 256  # width
    n_heads: Width = 4  # attention heads
    n_layers: PositiveInt = 3  # encoder layers, and as many decoder layers
    d_ff: Width = 1024  # width inside the feed-forward blocks
    vocab_size: VocabularySize = 8000  # joint BPE vocabulary
    max_tokens: TokenBudget = 4096  # of an update
    rounds: PositiveInt = 3  # turns that each takes
    seconds: Weight = 45.0  # of a turn, from the first report on
    output: str = ""  # JSON file to write the speeds to


@dataclass(frozen=True)
class Report:
    """What a program logged: when, in seconds, and how many target tokens it has trained on since the last."""

    at: float
    target_tokens: float


def our_command(config: Config, folder: Path) -> list[str]:
    """The command of train_translation.py, whose run goes to `folder`."""
    flags = {
        "languages": "source target",
        "train_files": " ".join(str(Path(path).resolve()) for path in config.train_files),
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "n_encoder_layers": config.n_layers,
        "n_decoder_layers": config.n_layers,
        "d_ff": config.d_ff,
        "max_tokens": config.max_tokens,
        "ema_decay": 0,
        "log_every": EVERY,
        "output_dir": folder,
        "tracker": "none",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", *str(value).split())]
    return [sys.executable, "train_translation.py", "opus-en-it", "--no_final_test", *words]


def eole_config(config: Config, precision: str, folder: Path) -> dict:
    """What Eole's `train -config` reads, of files that `write_tokens` has written to `folder`."""
    return {
        "seed": 1,
        "report_every": EVERY,
        "src_vocab": str(folder / "vocab.txt"),
        "tgt_vocab": str(folder / "vocab.txt"),
        "share_vocab": True,
        "save_data": str(folder / "data"),
        "n_sample": 0,
        "data": {
            "corpus": {"path_src": str(folder / "train.source"), "path_tgt": str(folder / "train.target")},
            "valid": {"path_src": str(folder / "valid.source"), "path_tgt": str(folder / "valid.target")},
        },
        "training": {
            "model_path": str(folder / "model"),
            "compute_dtype": "fp32" if precision == "no" else precision,
            "use_amp": True,
            "world_size": 0,
            "gpu_ranks": [],
            "num_workers": 0,
            "bucket_size": 1_000_000,
            "prefetch_factor": 16,
            "batch_type": "tokens",
            "batch_size": config.max_tokens,
            "normalization": "tokens",
            "accum_count": [1],
            "accum_steps": [0],
            "dropout": [0.1],
            "attention_dropout": [0.0],
            "label_smoothing": 0.1,
            "optim": "adamw",
            "learning_rate": 1e-4,
            "max_grad_norm": 1.0,
            "train_steps": 1_000_000,
            "valid_steps": 1_000_000,
            "save_checkpoint_steps": 1_000_000,
            "log_attention_entropy": False,
            "param_init_method": "xavier_uniform",
        },
        "model": {
            "architecture": "transformer",
            "hidden_size": config.d_model,
            "layers": config.n_layers,
            "heads": config.n_heads,
            "transformer_ff": config.d_ff,
            "share_decoder_embeddings": True,
            "share_embeddings": True,
            "add_qkvbias": True,
            "add_ffnbias": True,
            "add_final_linear_bias": True,
            "embeddings": {"word_vec_size": config.d_model, "position_encoding_type": "SinusoidalInterleaved"},
        },
    }


def write_tokens(config: Config, folder: Path) -> None:
    """The tokens of our vocabulary as Eole reads them, a word each, and the list of them."""
    splits = load_text_splits("", "", ("source", "target"), train_files=config.train_files)
    corpus = TranslationCorpus(
        splits,
        kind="bpe",
        vocab_size=config.vocab_size,
        min_frequency=1,
        lowercase=False,
        joint=True,
        max_len=128,
    )
    for name, pairs in (("train", corpus.train), ("valid", corpus.valid)):
        write_lines(folder / name, pairs)
    n_tokens = corpus.source_tokenizer.vocab_size
    words = range(EOS_ID + 1, n_tokens)  # the first few are special, and Eole has its own
    (folder / "vocab.txt").write_text("".join(f"t{i}\t{n_tokens - i}\n" for i in words), encoding="utf-8")


def write_lines(stem: Path, pairs: TokenizedPairs) -> None:
    """A pair a line, to STEM.source and STEM.target."""
    for suffix, side in ((".source", pairs.source), (".target", pairs.target)):
        sentences = (side[i].tolist() for i in range(len(pairs)))
        lines = (" ".join(f"t{token}" for token in tokens if token > EOS_ID) for tokens in sentences)
        stem.with_suffix(suffix).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def our_reports(folder: Path) -> list[Report]:
    """Of the metrics that our run in `folder` has written so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    rows = [row for row in rows if "train/tokens_per_second" in row]
    reports = []
    for i, row in enumerate(rows):
        seconds = row["time"] - rows[i - 1]["time"] if i else 0.0
        reports.append(Report(row["time"], seconds * row["train/tokens_per_second"]))
    return reports


def eole_reports(log: Path) -> list[Report]:
    """Of the lines that Eole has logged so far."""
    found = EOLE_REPORT.findall(log.read_text(encoding="utf-8", errors="replace"))
    return [
        Report(datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(), EVERY * int(tokens))
        for at, tokens in found
    ]


def speed(reports: list[Report]) -> float:
    """Target tokens a second from the first report to the last."""
    return sum(report.target_tokens for report in reports[1:]) / (reports[-1].at - reports[0].at)


def take_turn(
    command: list[str], precision: str, log: Path, reports: Callable[[], list[Report]], seconds: float
) -> float:
    """Run a program until its reports span `seconds`; its speed. Raises UsageError where it ends before."""
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": precision}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    started = time.monotonic()
    try:
        while True:
            time.sleep(LOOKS_EVERY)
            found = reports()
            if len(found) > 1 and found[-1].at - found[0].at >= seconds:
                return speed(found)
            late = len(found) < 2 and time.monotonic() - started > MOST_SECONDS
            if late or process.poll() is not None:
                raise UsageError(f"{' '.join(command[:3])} ended or logged nothing: {tail(log)}")
    finally:
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(nothing)")


def measure(config: Config, folder: Path) -> Speeds:
    """Target tokens a second of each program and precision, round by round."""
    write_tokens(config, folder)
    speeds: Speeds = {f"{who}, {p}": [] for p in config.precisions for who in ("eole", "onecycle")}
    for round_ in range(config.rounds):
        for precision in config.precisions:
            own = folder / f"turn-{round_}-{precision}"
            own.mkdir()
            yaml_path = own / "eole.yaml"
            yaml_path.write_text(yaml.safe_dump(eole_config(config, precision, folder)), encoding="utf-8")
            log = own / "eole.log"
            command = [str(Path(config.eole).absolute()), "train", "-config", str(yaml_path)]
            eole = take_turn(command, "no", log, partial(eole_reports, log), config.seconds)
            run = own / "run"
            command = our_command(config, run)
            ours = take_turn(command, precision, own / "run.log", partial(our_reports, run), config.seconds)
            speeds[f"eole, {precision}"].append(eole)
            speeds[f"onecycle, {precision}"].append(ours)
            print(f"round {round_ + 1}, {precision}: eole {eole:,.0f}, onecycle {ours:,.0f}", file=sys.stderr)
    return speeds


def report(config: Config) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        speeds = measure(config, Path(folder))
    print(f"{config.max_tokens} tokens an update, {config.rounds} turns of {config.seconds:g} s each")
    print(f"{'':18} {'target tokens/s':>16} {'times Eole':>20}")
    for name, values in speeds.items():
        eole = f"eole, {name.partition(', ')[2]}"
        print(f"{name:18} {statistics.median(values):16,.0f}   {ratio_text(speeds, name, to=eole)}")
    if config.output:
        Path(config.output).write_text(json.dumps(speeds, indent=1) + "\n")


def main(args: list[str] | None = None) -> None:
    """Run from the command line; exits with code 2, after one line, where a program or a corpus cannot be used."""
    call_with_config(report, Config, __doc__ or "", args, (DataError,))


if __name__ == "__main__":
    run_tool(main)
