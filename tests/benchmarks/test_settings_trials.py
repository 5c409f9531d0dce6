"""Trials of a script that trains nothing: it writes the summary that its flags ask for, or waits to be stopped."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks.settings_trials import Trial, comparison, over_seeds, read_lines, run_trials, scores
from training.cores import usable_cores

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
    import json, os, pathlib, signal, sys, time
    flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    folder = pathlib.Path(flags["--output_dir"])
    with open(folder.parent.parent / "begun.txt", "a") as file:
        print(sys.argv[1], flags.get("--score"), flags["--resume"], file=file)
    folder.mkdir(exist_ok=True)
    if sys.argv[1] == "fails":
        print("error: --score of nothing: give a number")
        sys.exit(2)
    if sys.argv[1] == "diverges":
        sys.exit(1)
    if sys.argv[1] == "waits" and not (folder / "saved").exists():
        def save(*_):
            (folder / "saved").touch()
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        (folder / "waiting").touch()
        time.sleep(60)
    summary = {"best/valid/dice": float(flags["--score"]) + int(flags.get("--seed", 0)), "best/step": 7}
    summary |= {"test/dice": 0.99, "train_seconds": 2.0, "device": os.environ["OMP_NUM_THREADS"]}
    (folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def script(tmp_path) -> str:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return str(path)


def begun(tmp_path) -> list[str]:
    return (tmp_path / "begun.txt").read_text().splitlines()


def test_each_trial_leaves_a_line_of_its_validation_alone(script, tmp_path):
    output = tmp_path / "out.jsonl"
    trials = [Trial("one", ("ends", "--score", "0.5")), Trial("two", ("ends", "--score", "0.75"))]
    lines = run_trials(script, over_seeds(trials, 2), minutes=1, jobs=2, output=output, precision="bf16")
    assert sorted(line["valid"]["dice"] for line in lines) == [0.5, 0.75, 1.5, 1.75]
    first = lines[0]
    assert first["flags"] == ["ends", "--score", "0.5", "--seed", "0"] and first["precision"] == "bf16"
    assert (first["name"], first["exit_code"], first["step"], first["train_seconds"]) == ("one", 0, 7, 2.0)
    assert first["device"] == str(max(1, usable_cores() // 2))
    assert "0.99" not in output.read_text()  # of the test
    assert sorted(map(json.dumps, lines)) == sorted(output.read_text().splitlines())
    table = comparison(lines, "dice", higher_is_better=True).splitlines()
    assert [line.split()[0] for line in table[2:]] == ["two", "one"] and "1.2500" in table[2]
    assert [line.split()[0] for line in comparison(lines, "dice", higher_is_better=False).splitlines()[2:]] == [
        "one",
        "two",
    ]


def test_what_was_made_is_not_made_again_and_what_failed_is(script, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    trials = [Trial("a", ("ends", "--score", "1")), Trial("b", ("fails",)), Trial("c", ("diverges",))]
    for expected in (3, 4):
        lines = run_trials(script, trials, minutes=1, jobs=1, output=output)
        assert len(begun(tmp_path)) == expected
        assert [line["exit_code"] for line in lines] == [0, 2, 1]
    trials.append(Trial("a", ("ends", "--score", "2")))
    assert len(run_trials(script, trials, minutes=1, jobs=1, output=output)) == 4
    found = {score.name: (score.runs, score.failed) for score in scores(lines, "dice", higher_is_better=True)}
    assert found == {"a": (1, 0), "b": (1, 1), "c": (1, 1)}
    assert "b: --score of nothing: give a number" in capsys.readouterr().out


def test_a_trial_that_the_end_of_the_time_cuts_goes_on_the_next_time(script, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    trials = [Trial("long", ("waits", "--score", "1")), Trial("after", ("ends", "--score", "2"))]
    started = time.monotonic()
    assert run_trials(script, trials, minutes=0.02, jobs=1, output=output) == []
    assert time.monotonic() - started < 20 and "long waits --score 1\n  after" in capsys.readouterr().err
    lines = run_trials(script, trials, minutes=1, jobs=1, output=output)
    assert [line["valid"]["dice"] for line in lines] == [1, 2] and read_lines(output) == lines
    assert begun(tmp_path) == ["waits 1 latest", "waits 1 latest", "ends 2 latest"]


def test_a_signal_ends_the_trials_too(script, tmp_path):
    code = f"""
from pathlib import Path
from benchmarks.settings_trials import Trial, run_trials
run_trials({script!r}, [Trial("long", ("waits", "--score", "1"))], minutes=1, jobs=1, output=Path("out.jsonl"))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("out/*/waiting")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.glob("out/*/saved"))
