"""Whole runs of the scripts on the device: their times, and that they end as they should."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_deepspeed_available
from safetensors.torch import load_file

from benchmarks.gpu.card import Finding, Options, Task
from benchmarks.made_corpus import write_made_corpus

ON_CUDA = torch.cuda.is_available()
ROOT = Path(__file__).resolve().parent.parent.parent
QUIET = ("--tracker", "none")
GENUINE_SCALE = "65536"  # torch's
OVERFLOWING_SCALE = str(2.0**40)


def speedrun(options: Options) -> Finding:
    """The speed run of train_cifar.py as it is launched, on CIFAR-10 or on noise of its form."""
    folder = options.made("speedrun")
    data = options.cifar_dir or str(_noise_of_cifar(folder, n_images=500 if options.tiny else 10_000))
    small = ("--epochs", "1", "--batch_size", "200", "--speednet_widths", "8", "8", "8") if options.tiny else ()
    flags = ("speedrun", "--data_dir", data, "--no_compile", *small)
    summary = _launch("bf16" if ON_CUDA else "cpu", "train_cifar.py", folder / "run", *flags)
    kept = (
        "train_seconds",
        "warm_up_seconds",
        "total_seconds",
        "test/accuracy",
        "test/accuracy_views",
        "peak_memory_mb",
        "device",
    )
    numbers = {name: summary[name] for name in kept if name in summary}
    on = f"CIFAR-10, accuracy {summary['test/accuracy']:.2%}" if options.cifar_dir else "noise"
    return Finding(
        f"{summary['train_seconds']:.2f} s of training on {on}; {summary['peak_memory_mb']:,.0f} MB",
        summary["train_seconds"] <= 3 if ON_CUDA and not options.tiny else None,
        {**numbers, "data": "CIFAR-10" if options.cifar_dir else "noise"},
    )


def _noise_of_cifar(folder: Path, n_images: int) -> Path:
    """The binary archive of CIFAR-10, five training files and the test file, with noise for pictures."""
    data = folder / "cifar-10-batches-bin"
    data.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        labels = rng.integers(0, 10, (n_images, 1), dtype=np.uint8)
        pixels = rng.integers(0, 256, (n_images, 3072), dtype=np.uint8)
        np.concatenate([labels, pixels], axis=1).tofile(data / name)
    (data / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")
    return data


def epoch_of_en_it(options: Options) -> Finding:
    """An epoch of train_translation.py opus-en-it as it is launched, with its validation."""
    folder = options.made("en-it")
    n_pairs = 300 if options.tiny else 32_000  # as many as opus_books en-it has
    files = options.train_files or write_made_corpus(folder, n_pairs)
    small = ("--d_model", "32", "--d_ff", "32", "--max_train_steps", "3", "--vocab_size", "600")
    flags = ("opus-en-it", "--train_files", *files, "--no_final_test", "--valid_sentences", "64", "--epochs", "1")
    flags = (*flags, "--log_every", "20")
    run = folder / "run"
    yaml = "bf16" if ON_CUDA else "cpu"
    summary = _launch(yaml, "train_translation.py", run, *flags, *(small if options.tiny else ()))
    rates = [line["train/tokens_per_second"] for line in _metrics(run) if "train/tokens_per_second" in line]
    rate = float(np.median(rates)) if rates else math.nan
    return Finding(
        f"{summary['train_seconds']:.1f} s of training an epoch, {rate:,.0f} target tokens/s, "
        f"{summary['peak_memory_mb']:,.0f} MB",
        None,
        {
            "train_seconds": summary["train_seconds"],
            "tokens_per_second": rate,
            "tokens_per_second_over_time": [round(value) for value in rates],
            "peak_memory_mb": summary["peak_memory_mb"],
            "data": "given" if options.train_files else f"made, {n_pairs} pairs",
        },
    )


SMALL_BATCHES = ["--max_tokens", "512", "--valid_sentences", "8"]
SMALL_TRANSFORMER = ["--d_model", "32", "--d_ff", "32", "--n_heads", "2", "--vocab_size", "400"]
QUICK = ["--no_final_test", "--log_every", "1"]
TINY_TRANSLATION = ["demo", *QUICK, *SMALL_TRANSFORMER, *SMALL_BATCHES, "--dropout", "0.1"]
TINY_RUNS = {
    "train_translation": TINY_TRANSLATION,
    "train_cifar": ["demo", *QUICK, "--speednet_widths", "8", "8", "8", "--batch_size", "100"],
    "train_unet": ["demo", *QUICK, "--image_size", "32", "--width", "8", "--batch_size", "8"],
    "train_cvae": ["demo", *QUICK, "--width", "16", "--batch_size", "32"],
}


def two_processes_equal_accumulation(options: Options) -> Finding:
    """Two processes on one device, over gloo, against one that accumulates two micro-batches."""
    folder = options.made("two-processes")
    steps = ("--max_train_steps", "6", "--deterministic")
    flags = (*TINY_TRANSLATION, *steps)
    _altered(_processes(2), "no", "train_translation", folder / "two", *flags, backend="gloo")
    alone = folder / "one"
    accumulated = (*flags, "--gradient_accumulation_steps", "2")
    _altered(_processes(1), "no", "train_translation", alone, *accumulated)
    apart = _largest_difference(folder / "two", alone)
    return Finding(f"weights at most {apart:.1e} apart after 6 updates", apart < 1e-5, {"difference": apart})


def overflow_in_fp16_is_resumed(options: Options) -> Finding:
    """Updates that fp16 skips are counted, and a run that was stopped ends as one that was not."""
    folder = options.made("overflow")
    flags = (*TINY_TRANSLATION, "--max_train_steps", "120", "--deterministic")
    whole, stopped = folder / "whole", folder / "stopped"
    # The scale is halved at each overflow: some 24 updates are skipped until it is where torch begins.
    _altered(_processes(1), "fp16", "train_translation", whole, *flags, init_scale=OVERFLOWING_SCALE)
    _altered(_processes(1), "fp16", "train_translation", stopped, *flags, init_scale=OVERFLOWING_SCALE, stop_at=2)
    resume = (*flags, "--resume", "latest")
    _altered(_processes(1), "fp16", "train_translation", stopped, *resume, init_scale=OVERFLOWING_SCALE)
    apart = _largest_difference(whole, stopped)
    skipped = [_state(run)["skipped"] for run in (whole, stopped)]
    return Finding(
        f"{skipped[0]} and {skipped[1]} updates skipped, weights {apart:.1e} apart",
        skipped[0] == skipped[1] > 0 and apart == 0,
        {"skipped": skipped, "difference": apart},
    )


def deterministic_runs_are_equal(options: Options) -> Finding:
    """Each script's command twice with --deterministic: the same weights, to the bit."""
    folder = options.made("deterministic")
    apart = {}
    for script, flags in TINY_RUNS.items():
        runs = [folder / f"{script}-{number}" for number in (1, 2)]
        processes = []
        for run in runs:
            steps = ("--max_train_steps", "8", "--deterministic")
            processes += _start(_processes(1), "bf16", script, run, *flags, *steps)
        _check(processes)
        apart[script] = _largest_difference(*runs)
    return Finding(
        ", ".join(f"{script} {difference:.0e} apart" for script, difference in apart.items()),
        not any(apart.values()),
        apart,
    )


def one_of_two_is_told_to_end(options: Options) -> Finding:
    """SIGTERM to one of two processes: both save a checkpoint and end, within 20 updates."""
    folder = options.made("sigterm")
    flags = (*TINY_TRANSLATION, "--max_train_steps", "5000", "--validate_every", "5000", "--log_every", "500")
    run = folder / "run"
    processes = _start(_processes(2), "no", "train_translation", run, *flags, "--profile", backend="gloo")
    _wait_until(lambda: (run / "profile").exists(), processes)  # written some updates in
    time.sleep(1)
    processes[1].send_signal(signal.SIGTERM)
    started = time.perf_counter()
    codes = [process.wait(timeout=60) for process in processes]
    seconds = time.perf_counter() - started
    step = _state(run)["step"]
    return Finding(
        f"both ended in {seconds:.1f} s with {codes}, checkpoint at update {step}",
        codes == [143, 143] and 0 < step < 5000 and seconds < 20,
        {"seconds": seconds, "codes": codes, "step": step},
    )


def fsdp_equals_one_process(options: Options) -> Finding:
    """A model sharded over one process trains as one that is not."""
    return _sharded_equals_whole(options, "fsdp")


def deepspeed_equals_one_process(options: Options) -> Finding:
    """As with FSDP, by DeepSpeed's engine."""
    if not is_deepspeed_available():
        return Finding("deepspeed is not installed")
    return _sharded_equals_whole(options, "deepspeed_zero2")


def _sharded_equals_whole(options: Options, yaml: str) -> Finding:
    folder = options.made(yaml)
    flags = (*TINY_TRANSLATION, "--max_train_steps", "40", "--validate_every", "40", "--ema_decay", "0.9")
    scores = {}
    for name in (yaml, "bf16"):
        _launch(name, "train_translation.py", folder / name, *flags, launcher=("--num_processes", "1"))
        scores[name] = next(line["valid/nll"] for line in reversed(_metrics(folder / name)) if "valid/nll" in line)
    sharded, whole = scores.values()
    return Finding(
        f"validation nll {sharded:.4f}, without it {whole:.4f}, after 40 updates",
        abs(sharded / whole - 1) < 0.01,
        scores,
    )


# -- launching ------------------------------------------------------------------------------------------------


def _launch(yaml: str, script: str, run: Path, *flags: str, launcher: tuple[str, ...] = ()) -> dict[str, Any]:
    """Launch a run as users do; its summary. Raises RuntimeError with the end of its output where it failed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "-q"]
    command += ["--config_file", f"accelerate_configs/{yaml}.yaml", *launcher]
    command += [script, *flags, *QUIET, "--output_dir", str(run)]
    _check([subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)])
    return json.loads((run / "summary.json").read_text())


def _altered(
    environments: list[dict[str, str]],
    precision: str,
    script: str,
    run: Path,
    *flags: str,
    backend: str = "default",
    init_scale: str = GENUINE_SCALE,
    stop_at: int = 0,
) -> None:
    """A run by benchmarks/gpu/altered.py; with `stop_at` it is told to end once it has logged so many updates."""
    processes = _start(environments, precision, script, run, *flags, backend=backend, init_scale=init_scale)
    if stop_at:
        _wait_until(lambda: (run / "metrics.jsonl").exists() and len(_metrics(run)) >= stop_at, processes)
        for process in processes:
            process.send_signal(signal.SIGTERM)
    _check(processes, 143 if stop_at else 0)


def _start(
    environments: list[dict[str, str]],
    precision: str,
    script: str,
    run: Path,
    *flags: str,
    backend: str = "default",
    init_scale: str = GENUINE_SCALE,
) -> list[subprocess.Popen]:
    command = [sys.executable, "-m", "benchmarks.gpu.altered", backend, init_scale, script, *flags, *QUIET]
    command += ["--output_dir", str(run)]
    common = {**os.environ, "ACCELERATE_MIXED_PRECISION": precision}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**common, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in environments
    ]


def _processes(n: int) -> list[dict[str, str]]:
    """What each of n processes on one device is told of the others."""
    if n == 1:
        return [{}]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    common = {
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # On a GPU each is the first of its machine, so that all take the first GPU.
    return [{**common, "RANK": str(rank), "LOCAL_RANK": "0" if ON_CUDA else str(rank)} for rank in range(n)]


def _check(processes: list[subprocess.Popen], code: int = 0) -> None:
    """Wait for all. Where one ends by another exit code, print all output and raise RuntimeError with the error."""
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode != code for process in processes):
        codes = [process.returncode for process in processes]
        print(*outputs, sep="\n---\n")
        raise RuntimeError(f"exit codes {codes}: {' | '.join(_error_in(output) for output in outputs)}")


def _error_in(output: str) -> str:
    """The first line that names an error: a launcher names one of its own after it."""
    lines = [line for line in output.splitlines() if "Error: " in line or line.startswith("error: ")]
    return lines[0] if lines else output[-600:]


def _wait_until(holds, processes: list[subprocess.Popen], seconds: float = 120.0) -> None:
    began = time.perf_counter()
    while not holds():
        if time.perf_counter() - began > seconds or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            _check(processes)
        time.sleep(0.05)


# -- what a run left ------------------------------------------------------------------------------------------


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]  # the last may be in the making


def _newest_checkpoint(run: Path) -> Path:
    folders = (run / "checkpoints").glob("checkpoint-*")
    return max(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def _state(run: Path) -> dict[str, Any]:
    return json.loads((_newest_checkpoint(run) / "state.json").read_text())


def _largest_difference(a: Path, b: Path) -> float:
    first, second = (load_file(_newest_checkpoint(run) / "model.safetensors") for run in (a, b))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


RUNS = [
    Task("two processes on one device", "weights within 1e-5 of accumulation", two_processes_equal_accumulation),
    Task(
        "fp16 overflow and resume",
        "equal to the bit, skipped updates counted",
        overflow_in_fp16_is_resumed,
        needs_cuda=True,
    ),
    Task("--deterministic, twice", "equal to the bit", deterministic_runs_are_equal),
    Task("SIGTERM to one of two", "both save and end within 20 updates", one_of_two_is_told_to_end),
    Task("FSDP with one process", "nll within 1 % of one process", fsdp_equals_one_process, needs_cuda=True),
    Task("DeepSpeed with one process", "nll within 1 %", deepspeed_equals_one_process, needs_cuda=True),
    Task("speed run", "at most 3 s of training", speedrun, timed=True),
]
EPOCH = Task("epoch of opus-en-it", "kept on record", epoch_of_en_it, timed=True)
