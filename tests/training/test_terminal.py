"""In processes of their own: the streams are those of the whole process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PRINTS = """
import sys, warnings
from tqdm import tqdm
from training.terminal import make_printing_safe
make_printing_safe()
for i in tqdm(range(3), mininterval=0):
    tqdm.write("città " * 20_000, file=sys.stdout)
    sys.stdout.flush()
    print("perché", file=sys.stderr)
    warnings.warn(f"più {i}")
with open(sys.argv[1], "w") as file:
    print("still here", file=file)
print("left for the shutdown to flush")
"""
TOOL = """
import sys
from training.cli import run_tool
def main():
    for i in range(int(sys.argv[2])):
        print("città", i)
    open(sys.argv[1], "w").write("still here")
run_tool(main, stdout_is_the_result=sys.argv[3] == "result")
"""


def run(code: str, *args, redirect: str = "", **environment) -> subprocess.CompletedProcess:
    command = ["bash", "-c", f'"$0" "$@" {redirect}', sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": ""} | environment, capture_output=True, timeout=60
    )


@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1", "| true", "2>&1 | true"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stream_that_takes_nothing_ends_nothing(tmp_path, redirect, unbuffered):
    piped = "; exit ${PIPESTATUS[0]}" if "|" in redirect else ""
    done = run(PRINTS, tmp_path / "file", redirect=redirect + piped, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert (tmp_path / "file").read_text() == "still here\n"  # nothing was printed into it either


def test_letters_that_the_terminal_lacks_are_escaped(tmp_path):
    done = run(PRINTS, tmp_path / "file", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"citt\\xe0" in done.stdout and b"perch\\xe9" in done.stderr
    assert "città" in run(PRINTS, tmp_path / "file", PYTHONIOENCODING="utf-8").stdout.decode()


@pytest.mark.parametrize("lines", [3, 100_000])  # flushed at the end, and on the way
def test_a_tool_whose_result_nobody_takes_ends_by_convention(tmp_path, lines):
    gone = run(TOOL, tmp_path / "a", lines, "result", redirect="| true; exit ${PIPESTATUS[0]}")
    assert (gone.returncode, gone.stderr) == (141, b"")
    full = run(TOOL, tmp_path / "b", lines, "result", redirect=">/dev/full")
    assert full.returncode == 2 and full.stderr == b"error: stdout cannot be written: No space left on device\n"
    for redirect in ("| true; exit ${PIPESTATUS[0]}", ">/dev/full"):
        assert run(TOOL, tmp_path / "c", lines, "beside", redirect=redirect).returncode == 0
    assert (tmp_path / "c").read_text() == "still here"
    assert (tmp_path / "a").exists() == (lines == 3)  # it does not work on for nobody
