import gzip
import json
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from training.profiling import TABLE_ROWS, profiler


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def run_updates(profile, n_updates: int) -> None:
    x = torch.randn(32, 32)
    for _ in range(n_updates):
        x = torch.tanh(x @ x)
        x = x.softmax(-1)
        profile.step()


def calls_of(operation: str, table: str) -> int:
    """The last column of the operation's row."""
    (row,) = [line for line in table.splitlines() if line.split()[:1] == [operation]]
    return int(row.split()[-1])


@pytest.mark.parametrize("n_updates", [30, 12, 11])  # long after, exactly at, and within the last planned one
def test_profiles_the_planned_updates(tmp_path, accelerator, n_updates):
    with profiler(tmp_path, accelerator, wait=5, warmup=2, active=5) as profile:
        run_updates(profile, n_updates)
    table = (tmp_path / "profile" / "table.txt").read_text()
    n_profiled = min(n_updates, 12) - 7
    assert f"Updates 8 to {7 + n_profiled} of the run ({n_profiled} of 5 planned" in table
    assert calls_of("aten::tanh", table) == n_profiled  # one a step: no more, no fewer updates were recorded

    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::tanh" for event in trace["traceEvents"]) == n_profiled


def test_table_is_sorted_by_self_cpu_time_and_short(tmp_path, accelerator):
    with profiler(tmp_path, accelerator, wait=0, warmup=1, active=2) as profile:
        run_updates(profile, 4)
    lines = (tmp_path / "profile" / "table.txt").read_text().splitlines()
    header = next(line for line in lines if "Self CPU %" in line)
    assert "Input Shapes" not in header
    rows = [line.split() for line in lines if line.strip().startswith("aten::")]
    shares = [float(row[1].rstrip("%")) for row in rows]  # the column "Self CPU %"
    assert 0 < len(rows) <= TABLE_ROWS
    assert shares == sorted(shares, reverse=True)


def test_results_are_on_disk_before_the_run_ends(tmp_path, accelerator):
    with profiler(tmp_path, accelerator, wait=0, warmup=1, active=1) as profile:
        run_updates(profile, 3)
        assert (tmp_path / "profile" / "trace.json.gz").exists()


def test_a_run_that_is_too_short_says_so(tmp_path, accelerator):
    with profiler(tmp_path, accelerator, wait=5, warmup=2, active=5) as profile:
        run_updates(profile, 7)
    table = (tmp_path / "profile" / "table.txt").read_text()
    assert table == "Nothing profiled: the run made 7 updates, the profile starts at 8.\n"
    assert not (tmp_path / "profile" / "trace.json.gz").exists()


def test_an_error_in_the_loop_passes_through(tmp_path, accelerator):
    with pytest.raises(RuntimeError, match="boom"), profiler(tmp_path, accelerator):
        raise RuntimeError("boom")


def test_disabled_writes_nothing(tmp_path, accelerator):
    with profiler(tmp_path, accelerator, enabled=False) as profile:
        run_updates(profile, 15)
    assert list(tmp_path.iterdir()) == []


def test_only_the_main_process_writes(tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: False))
    with profiler(tmp_path, accelerator) as profile:
        run_updates(profile, 15)
    assert list(tmp_path.iterdir()) == []


def test_no_warnings(tmp_path):
    """Torch's profiler is quick to warn about its own settings, and the user could do nothing about it."""
    program = (
        "import sys, torch; from pathlib import Path; from accelerate import Accelerator\n"
        "from training.profiling import profiler\n"
        "with profiler(Path(sys.argv[1]), Accelerator(cpu=True)) as profile:\n"
        "    for _ in range(15): torch.ones(3).sum(); profile.step()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
