import errno
import json
import os
import signal
from dataclasses import dataclass

import psutil
import pytest
import torch

from training.errors import UsageError
from training.run import Run, begin_run, open_accelerator, peak_memory_mb


@dataclass(frozen=True)
class Config:
    output_dir: str
    recipe: str = "demo"
    tracker: str = "none"
    eval_only: bool = False


def open_run(path, state=None, **options) -> Run:
    checkpoint = path / "checkpoints" / f"checkpoint-{state['step']}" if state else None
    return Run(open_accelerator(), "translation", Config(str(path), **options), checkpoint, state)


def read_metrics(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_lines_hold_step_epoch_time_and_values(fresh_accelerate, tmp_path):
    run = open_run(tmp_path / "run")
    run.log({"train/loss": 2.5}, step=10, epoch=0.5)
    (line,) = read_metrics(tmp_path / "run")
    assert line["time"] >= 0
    assert {k: line[k] for k in ("step", "epoch", "train/loss")} == {"step": 10, "epoch": 0.5, "train/loss": 2.5}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"] == "demo"


def test_an_earlier_run_is_moved_aside_not_overwritten(fresh_accelerate, tmp_path, capsys):
    for value in (1.0, 2.0, 3.0):
        open_run(tmp_path / "run").log({"x": value}, 1, 0)
    assert read_metrics(tmp_path / "run")[0]["x"] == 3.0
    assert [read_metrics(tmp_path / f"run.{n}")[0]["x"] for n in (1, 2)] == [1.0, 2.0]
    assert "moved to" in capsys.readouterr().out


def test_resuming_forgets_what_was_logged_after_the_checkpoint(fresh_accelerate, tmp_path):
    run = open_run(tmp_path / "run")
    for step in (1, 2, 3):
        run.log({"x": step}, step, 0)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')  # cut short by a kill
    run = open_run(tmp_path / "run", {"step": 2, "total_seconds": 100.0, "tracker_id": None})
    run.log({"x": 33}, 3, 0)
    assert [(line["step"], line["x"]) for line in read_metrics(tmp_path / "run")] == [(1, 1), (2, 2), (3, 33)]
    assert read_metrics(tmp_path / "run")[-1]["time"] >= 100


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
def test_too_few_threads_are_told_of_but_not_on_cores_of_others(fresh_accelerate, tmp_path, capfd, monkeypatch):
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 64)
    try:
        torch.set_num_threads(1)
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
        open_run(tmp_path / "all")
        assert "1 thread(s) in each of 1 process(es) on 64 cores is slow" in capfd.readouterr().err
        monkeypatch.undo()
        monkeypatch.setattr("psutil.cpu_count", lambda logical: 64)
        os.sched_setaffinity(0, {min(cores)})
        fresh_accelerate()
        open_run(tmp_path / "one")
        assert "is slow" not in capfd.readouterr().err
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def test_programs_that_take_the_cores_are_told_of(fresh_accelerate, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: psutil.cpu_count() or 1)
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds: 50.0)
    open_run(tmp_path / "waits-asleep")  # as the tests are told to
    assert "cores busy" not in capfd.readouterr().err
    fresh_accelerate()
    monkeypatch.delenv("OMP_WAIT_POLICY")
    open_run(tmp_path / "beside-others")
    assert f"other programs keep {(psutil.cpu_count() or 1) / 2:.1f} of" in capfd.readouterr().err
    fresh_accelerate()
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds: 1.0)
    open_run(tmp_path / "alone")
    assert "cores busy" not in capfd.readouterr().err


def test_a_signal_asks_the_loop_to_stop_and_gives_the_exit_code(fresh_accelerate, tmp_path):
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        run = open_run(tmp_path / "run")
        assert not run.stop_requested(agree=False)
        signal.raise_signal(number)
        assert run.stop_requested(agree=False)
        with pytest.raises(SystemExit) as end:
            run.exit_after_signal(tmp_path)
        assert end.value.code == code


def test_a_second_signal_does_not_wait(fresh_accelerate, tmp_path, monkeypatch):
    monkeypatch.setattr("training.signals.RESENT", 0.0)
    open_run(tmp_path / "run")
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)


def test_summary_is_flat_and_says_where_it_comes_from(fresh_accelerate, tmp_path):
    run = open_run(tmp_path / "run")
    run.finish({"test/bleu": 12.5}, 3.0, torch.nn.Linear(2, 3))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test/bleu"] == 12.5 and summary["train_seconds"] == 3.0 and summary["n_parameters"] == 9
    expected = {
        "total_seconds",
        "peak_memory_mb",
        "device",
        "mixed_precision",
        "num_processes",
        "versions",
        "git_commit",
        "command",
    }
    assert expected <= summary.keys()
    assert summary["process_seconds"] > summary["total_seconds"]  # which counts from where the run was opened
    assert summary["versions"]["torch"] == torch.__version__
    assert 50 < summary["peak_memory_mb"] < 100_000


def test_a_full_disk_while_logging_or_at_the_end_is_said_in_one_line(fresh_accelerate, tmp_path, monkeypatch):
    run = open_run(tmp_path / "run")
    run.log({"x": 1.0}, 1, 0)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("training.run.append_line", full)
    with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be written .*free some space"):
        run.log({"x": 2.0}, 2, 0)
    monkeypatch.setattr("training.run.write_whole", full)
    with pytest.raises(UsageError, match=r"summary\.json cannot be written .*free some space"):
        run.finish({}, 1.0, torch.nn.Linear(2, 2))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1]


def test_a_run_without_its_config_is_moved_aside_too(fresh_accelerate, tmp_path):
    (tmp_path / "run" / "checkpoints" / "checkpoint-7").mkdir(parents=True)
    open_run(tmp_path / "run")
    assert (tmp_path / "run.1" / "checkpoints" / "checkpoint-7").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_going_back_to_an_older_checkpoint_sets_the_newer_ones_aside(fresh_accelerate, tmp_path):
    open_run(tmp_path / "run")
    for step in (100, 900, 1000):
        (tmp_path / "run" / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    open_run(tmp_path / "run", {"step": 100, "total_seconds": 0.0, "tracker_id": None})
    found = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["abandoned-1000", "abandoned-900", "checkpoint-100"]


def test_a_run_that_goes_on_from_another_folder_moves_an_earlier_run_aside(fresh_accelerate, tmp_path):
    open_run(tmp_path / "run").log({"x": 1.0}, 1, 0)
    elsewhere = tmp_path / "other" / "checkpoints" / "checkpoint-5"
    state = {"step": 5, "total_seconds": 0.0, "tracker_id": None}
    Run(open_accelerator(), "translation", Config(str(tmp_path / "run")), elsewhere, state)
    assert (tmp_path / "run.1" / "metrics.jsonl").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_evaluation_alone_leaves_metrics_and_config_of_the_run_as_they_are(fresh_accelerate, tmp_path):
    run = open_run(tmp_path / "run")
    for step in (5, 10):
        run.log({"x": 1.0}, step, 0)
    before = (tmp_path / "run" / "config.json").read_text()
    open_run(tmp_path / "run", {"step": 5, "total_seconds": 0.0, "tracker_id": None}, eval_only=True)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [5, 10]
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_after_the_loop_a_signal_ends_the_run_at_once(fresh_accelerate, tmp_path):
    run = open_run(tmp_path / "run")
    run.release_signals()
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    run = open_run(tmp_path / "run")
    signal.raise_signal(signal.SIGTERM)  # during the last updates
    with pytest.raises(SystemExit):
        run.release_signals()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's peak can be begun anew")
def test_each_run_of_a_process_has_a_peak_of_memory_of_its_own(fresh_accelerate, tmp_path):
    @dataclass(frozen=True)
    class Settings(Config):
        gradient_accumulation_steps: int = 1
        deterministic: bool = False
        seed: int = 0

    accelerator = begin_run(Settings(str(tmp_path / "first")))
    before = peak_memory_mb(accelerator.device)
    torch.zeros(64 << 20, dtype=torch.uint8, device=accelerator.device)
    assert peak_memory_mb(accelerator.device) >= before + 64
    begin_run(Settings(str(tmp_path / "second")))
    assert peak_memory_mb(accelerator.device) < before + 64
