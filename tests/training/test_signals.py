"""Mostly in processes of their own, which the signals end."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from training import signals
from training.signals import stop_signals

ROOT = Path(__file__).resolve().parent.parent.parent
DEAF = """
import hashlib, os, signal, sys
from training import signals
signals.PATIENCE = signals.RESENT = 0.5
with signals.stop_signals.watched():
    if sys.argv[1] == "trains":
        signals.stop_signals.defer()
    if sys.argv[1] == "forks" and os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**6 if sys.argv[1] == "forks" else 2 * 10**9)
"""
TRAINS = """
import sys, time
from training.signals import stop_signals
with stop_signals.watched():
    stop_signals.defer()
    print("ready", flush=True)
    for update in range(80):
        time.sleep(0.05)
        if stop_signals.number:
            break
    open(sys.argv[1], "w").write(f"saved after {stop_signals.number}")
"""
LAUNCHES = """
import subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


def start(*command, **options) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def wait_until(true, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start_deaf(what_it_does: str) -> subprocess.Popen:
    """A process that is within its deaf call, as its processor time shows."""
    process = start("-c", DEAF, what_it_does)
    watched = psutil.Process(process.pid)
    used = watched.cpu_times().user
    wait_until(lambda: watched.cpu_times().user > used + 0.1)
    return process


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_call_that_is_deaf_to_signals_is_ended_where_nothing_is_to_be_saved(number, code):
    process = start_deaf("reads")
    process.send_signal(number)
    _, err = process.communicate(timeout=5)
    assert process.returncode == code
    assert err.startswith(f"{signal.Signals(number).name}: ended during ") and err.count("\n") == 1


def test_in_training_a_deaf_call_is_waited_for_in_words_and_a_second_signal_ends_it():
    process = start_deaf("trains")
    process.send_signal(signal.SIGTERM)
    process.stderr.readline()  # the progress bar's
    assert "SIGTERM: a checkpoint is saved after" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 143


def test_a_forked_worker_that_is_ended_does_not_end_its_parent():
    process = start("-c", DEAF, "forks")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_the_line_names_what_the_main_thread_is_in():
    said = []
    thread = threading.Thread(target=lambda: said.append(signals._busy_with()))
    thread.start()
    thread.join()
    assert said[0].startswith(
        "test_the_line_names_what_the_main_thread_is_in (tests/training/test_signals.py, line"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_ends_with_its_launcher_but_not_with_another_parent(tmp_path, number):
    for name in ("accelerate", "shell"):
        (tmp_path / name).write_text(LAUNCHES)
        parent = start(tmp_path / name, TRAINS, tmp_path / f"by_{name}", start_new_session=True)
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(number)
        wait_until(lambda name=name: (tmp_path / f"by_{name}").exists())
        wait_until(lambda child=child: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert (tmp_path / "by_accelerate").read_text() == "saved after 15"
    assert (tmp_path / "by_shell").read_text() == "saved after None"


@pytest.mark.parametrize("several", [False, True])
def test_a_terminal_that_hangs_up_ends_only_runs_whose_launcher_would_kill_them(
    fresh_accelerate, monkeypatch, several
):
    monkeypatch.setenv("WORLD_SIZE", "2" if several else "1")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    stop_signals.defer()
    signal.raise_signal(signal.SIGHUP)
    assert stop_signals.number == (signal.SIGHUP if several else None)


def test_what_nohup_ignores_stays_ignored(fresh_accelerate):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_signals.defer()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_sent_to_the_process_and_to_its_group_is_one(fresh_accelerate, monkeypatch):
    stop_signals.defer()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # as `timeout` does
    monkeypatch.setattr(signals, "RESENT", 0.0)
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143


def test_the_own_signal_is_no_second_one_where_another_process_has_told_of_its_own(fresh_accelerate, monkeypatch):
    monkeypatch.setattr(signals, "RESENT", 0.0)
    stop_signals.defer()
    stop_signals.number = int(signal.SIGTERM)  # as the processes agreed
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)


def test_a_sigterm_is_handed_on_for_seconds_but_a_second_ctrl_c_is_meant(fresh_accelerate, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("training.signals.time.monotonic", lambda: now[0])
    stop_signals.defer()
    signal.raise_signal(signal.SIGTERM)
    now[0] += 2.0
    signal.raise_signal(signal.SIGTERM)  # Slurm's, by way of srun
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGINT)
    assert end.value.code == 130
    now[0] += 2.0
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
