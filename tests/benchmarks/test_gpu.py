"""The GPU card on a CPU, at tiny sizes; on a GPU the same tasks decide more."""

import gzip
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as card
from benchmarks.gpu import runs, speed
from benchmarks.gpu.card import Finding, Options, Task
from benchmarks.gpu.speed import _compare, _steps
from benchmarks.gpu.task import CARD, find
from benchmarks.made_corpus import write_made_corpus

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a card finds without a GPU")


@pytest.mark.parametrize(
    "name", ["LSTM in bf16", "sums over 100,000 tokens in fp16", "batch norm on two processes"]
)
def test_checks_of_parts_hold(name, tmp_path):
    finding = find(CARD[name], Options(folder=str(tmp_path), tiny=True))
    assert finding.holds, finding.found


@pytest.mark.parametrize("name", ["two processes on one device", "SIGTERM to one of two"])
@pytest.mark.slow
def test_runs_end_as_they_should(name, tmp_path):
    finding = find(CARD[name], Options(folder=str(tmp_path), tiny=True))
    assert finding.holds, finding.found


@ON_CPU
@pytest.mark.parametrize("name", ["waits of an update", "Muon on twelve matrices", "FSDP with one process"])
def test_what_needs_a_gpu_says_so(name, tmp_path):
    finding = find(CARD[name], Options(folder=str(tmp_path)))
    assert (finding.found, finding.holds) == ("needs a GPU", None)


def test_a_task_that_fails_is_found_to_fail(capsys):
    def fails(options: Options) -> Finding:
        raise ValueError("no such\nlayer")

    finding = find(Task("broken", "nothing", fails), Options(folder=""))
    assert finding.holds is False and finding.found == "failed: ValueError: no such layer"
    assert "no such" in capsys.readouterr().err


def test_of_a_run_that_fails_its_own_error_is_told_and_not_the_launchers(capfd):
    printed = "[rank0]: RuntimeError: mixed dtype\\n", "torch.ChildFailedError: \\n", 70 * "----------\\n"
    failing = f"import sys; print('{''.join(printed)}'); sys.exit(1)"
    process = subprocess.Popen([sys.executable, "-c", failing], stdout=subprocess.PIPE, text=True)
    with pytest.raises(RuntimeError, match=r"exit codes \[1\]: \[rank0\]: RuntimeError: mixed dtype$"):
        runs._check([process])
    assert "ChildFailedError" in capfd.readouterr().out


# -- turns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("speed_on_device", "holds"), [(40.0, True), (9.0, False)])
def test_a_step_that_is_slower_than_the_one_before_is_named(speed_on_device, holds, monkeypatch):
    speeds = {"host": [10.0], "device": [speed_on_device], "+ bf16": [100.0]}
    ready = {name: {"warm_up_seconds": 0.0} for name in speeds}
    monkeypatch.setattr(speed, "take_turns", lambda *args, **options: (speeds, ready))
    variants = {name: {"precision": "no"} for name in speeds}
    finding = _compare(Options(folder=""), print, None, variants, "images/s", least=10)
    assert finding.holds is holds
    assert "100 images/s by '+ bf16', 10.0 times 'host'" in finding.found
    assert ("device (0.90 of host)" in finding.found) is not holds
    assert finding.numbers["+ bf16"]["times_the_first"] == [10.0]


def test_the_steps_begin_plain_and_end_compiled():
    steps = _steps("host", {"resident": False}, {"+ device": {"resident": True}})
    assert list(steps)[:3] == ["host", "+ device", "+ TF32, cuDNN's trials"] and list(steps)[-1] == "+ compile"
    assert [bool(step.get("plain")) for step in steps.values()][:3] == [True, True, False]
    assert [step["precision"] for step in steps.values()][:3] == ["no", "no", "no"]
    assert all(step["resident"] for name, step in steps.items() if name != "host")


# -- the card -------------------------------------------------------------------------------------------------


@pytest.fixture
def two_tasks(monkeypatch):
    """A card of one quick task and one that lasts a minute; `begun` are the names of those that were begun."""
    begun: list[str] = []

    def begin(task, options, output):
        begun.append(task.name)
        work = "import time; time.sleep(60)"
        if task.name == "quick":
            finding = asdict(Finding("all is well", True, {"seconds": 1.5}))
            result = str(output / "quick.json")
            work = f"from pathlib import Path; Path({result!r}).write_text({json.dumps(finding)!r})"
        return subprocess.Popen([sys.executable, "-c", work], start_new_session=True)

    tasks = [Task(name, "to end well", lambda options: Finding("")) for name in ("quick", "long")]
    monkeypatch.setattr(card, "CARD", {task.name: task for task in tasks})
    monkeypatch.setattr(card, "_begin", begin)
    monkeypatch.setattr(card, "SHORTEST", 0.5)
    return begun


def test_the_card_stops_in_time_and_goes_on_with_what_is_missing(two_tasks, tmp_path, capsys):
    config = card.Config(minutes=1.5 / 60, output=str(tmp_path))
    began = time.monotonic()
    card.main(config)
    assert time.monotonic() - began < 10
    printed = capsys.readouterr().out
    assert "holds   quick: all is well" in printed and "long: no time left" in printed
    (line,) = (json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines())
    assert line["task"] == "quick" and line["holds"] and line["numbers"] == {"seconds": 1.5}
    assert line["torch"] == torch.__version__

    two_tasks.clear()
    card.main(config)
    assert two_tasks == ["long"]
    text = (tmp_path / "card.txt").read_text()
    assert "holds   quick\n        expected: to end well\n        found: all is well\n" in text
    assert "long" not in text


def test_a_task_that_is_killed_is_on_record(two_tasks, tmp_path, monkeypatch):
    dies = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(card, "_begin", lambda *_: subprocess.Popen(dies, start_new_session=True))
    card.main(card.Config(output=str(tmp_path), only=("quick",)))
    assert "FAILS   quick" in (tmp_path / "card.txt").read_text()
    assert "exit code -9: see quick.log" in (tmp_path / "card.txt").read_text()


# -- the made corpus ------------------------------------------------------------------------------------------


def test_the_made_corpus_is_as_long_as_asked_and_the_same_each_time(tmp_path):
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        paths = write_made_corpus(folder, 400, mean_words=12)
        texts.append([gzip.decompress(Path(path).read_bytes()).decode() for path in paths])
    assert texts[0] == texts[1]
    source, target = (text.splitlines() for text in texts[0])
    lengths = [len(line.split()) for line in source]
    assert lengths == [len(line.split()) for line in target] and len(lengths) == 400
    assert 10 < sum(lengths) / len(lengths) < 14 and min(lengths) >= 1 and max(lengths) <= 100
    assert source != target
