"""Who owns a run's folder, and what is said of one that cannot be written."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from training import run_folder
from training.errors import UsageError
from training.run_folder import (
    LOCK,
    append_line,
    check_writable,
    claim_folder,
    holds_a_run,
    move_run_aside,
    release_folders,
    write_whole,
    writing,
)

ROOT = Path(__file__).resolve().parents[2]
CLAIM = """
import sys
from pathlib import Path
from training.errors import UsageError
from training.run_folder import claim_folder, holds_a_run, move_run_aside
folder = Path(sys.argv[1])
sys.stdin.readline()
try:
    claim_folder(folder)
    if holds_a_run(folder):
        move_run_aside(folder)
    (folder / "config.json").write_text(sys.argv[2])
    print("owner", flush=True)
except UsageError as error:
    print(f"refused: {error}", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def let_go():
    yield
    release_folders()


def another_run(folder, name="other") -> subprocess.Popen:
    """A process that claims `folder` at the first line on its stdin and ends at the second."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder), name], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    )


def go_on(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def earlier_run(folder) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text("earlier")


def test_a_folder_in_use_is_refused_with_its_owner_and_the_mend_and_free_after_a_kill(tmp_path):
    owner = another_run(tmp_path / "run")
    go_on(owner)
    assert owner.stdout.readline() == "owner\n"
    with pytest.raises(UsageError) as refusal:
        claim_folder(tmp_path / "run")
    shown = str(refusal.value)
    assert f"process {owner.pid} on {os.uname().nodename}" in shown and "-c" in shown and "\n" not in shown
    assert "another --output_dir" in shown and "wait for it or stop it" in shown
    owner.kill()
    owner.wait()
    assert (tmp_path / "run" / LOCK).exists()  # left behind, and in nobody's way
    claim_folder(tmp_path / "run")
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()


def test_the_same_process_may_ask_again_and_leaves_nothing_behind(tmp_path):
    for _ in range(2):
        claim_folder(tmp_path / "runs" / "cifar" / "demo")
    release_folders()
    assert list(tmp_path.iterdir()) == []
    claim_folder(tmp_path / "run")
    (tmp_path / "run" / "figures").mkdir()
    release_folders()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["figures"]


def test_of_runs_started_in_the_same_instant_one_owns_the_folder(tmp_path):
    """They also all find an earlier run to move aside: it must stay whole, and be moved once."""
    earlier_run(tmp_path / "run")
    runs = [another_run(tmp_path / "run", str(i)) for i in range(4)]
    starters = [threading.Thread(target=go_on, args=(run,)) for run in runs]
    for starter in starters:
        starter.start()
    said = [run.stdout.readline() for run in runs]
    assert sorted(line.split(":")[0].strip() for line in said) == ["owner", *["refused"] * 3]
    winner = said.index("owner\n")
    assert (tmp_path / "run" / "config.json").read_text() == str(winner)
    assert (tmp_path / "run.1" / "config.json").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]
    for run in runs:
        run.communicate("\n", timeout=30)


def test_a_lock_file_that_was_moved_while_we_took_it_is_not_taken_for_ours(tmp_path, monkeypatch):
    genuine, moved = run_folder.fcntl.flock, []

    def moved_in_between(handle, operation):
        genuine(handle, operation)
        if not moved:
            moved.append((tmp_path / "run").rename(tmp_path / "run.1"))

    monkeypatch.setattr(run_folder.fcntl, "flock", moved_in_between)
    claim_folder(tmp_path / "run")
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    monkeypatch.undo()
    third = another_run(tmp_path / "run")
    go_on(third)
    assert third.stdout.readline().startswith("refused")
    third.communicate("\n", timeout=30)


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_a_child_that_outlives_the_run_does_not_keep_the_lock(tmp_path, how):
    child = """
import os, subprocess, sys, time
from pathlib import Path
from training.run_folder import claim_folder
claim_folder(Path(sys.argv[1]))
if sys.argv[2] == "fork":
    if os.fork() == 0:
        os.close(1)
        time.sleep(30)
        os._exit(0)
else:
    subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL, close_fds=False)
time.sleep(0.2)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", child, str(tmp_path / "run"), how], cwd=ROOT, timeout=60)
    claim_folder(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_there_is_one_warning_and_the_run_goes_on(tmp_path, monkeypatch, capsys, number):
    def no_locks(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    for _ in range(2):
        claim_folder(tmp_path / "run")
    assert capsys.readouterr().err.count("warning:") == 1


def test_an_earlier_run_with_a_live_one_below_it_is_not_moved(tmp_path):
    earlier_run(tmp_path / "run")
    below = another_run(tmp_path / "run" / "below")
    go_on(below)
    assert below.stdout.readline() == "owner\n"
    claim_folder(tmp_path / "run")
    with pytest.raises(UsageError, match="below in it belongs to"):
        move_run_aside(tmp_path / "run")
    below.communicate("\n", timeout=30)
    assert move_run_aside(tmp_path / "run") == tmp_path / "run.1"


def test_what_cannot_be_renamed_has_its_content_moved(tmp_path, monkeypatch):
    """As a mount point: EBUSY. A move that a kill cut short is completed; a link keeps its place."""
    real = tmp_path / "real"
    (tmp_path / "run").symlink_to(real, target_is_directory=True)
    real.mkdir()
    rename = Path.rename

    def busy(self, target):
        if self == real:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    for n in (1, 2):
        earlier_run(real)
        (real / "earlier.2").mkdir(exist_ok=True)  # begun before a kill
        claim_folder(tmp_path / "run")
        assert move_run_aside(tmp_path / "run") == real / f"earlier.{n}"
        assert not holds_a_run(real) and (real / f"earlier.{n}" / "checkpoints").is_dir()
    assert sorted(p.name for p in real.iterdir()) == ["earlier.1", "earlier.2", LOCK]


def test_the_working_folder_and_a_linked_folder_keep_their_places(tmp_path, monkeypatch):
    earlier_run(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    claim_folder(Path("."))
    assert move_run_aside(Path(".")) == tmp_path / "here" / "earlier.1"
    earlier_run(tmp_path / "disk" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run", target_is_directory=True)
    claim_folder(tmp_path / "link")
    assert move_run_aside(tmp_path / "link") == tmp_path / "disk" / "run.1"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "link" / LOCK).exists()


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder, named in (
        ("file", "file is a file"),
        ("file/run", "file is a file"),
        ("link", "link is a link to"),
        ("link/cifar/demo", "link is a link to"),
        ("n" * 300, "File name too long"),
    ):
        with pytest.raises(UsageError, match=named) as refusal:
            claim_folder(tmp_path / folder)
        assert "another --output_dir" in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_without_the_right_to_write_or_on_a_full_disk_is_refused_at_once(tmp_path, monkeypatch):
    for number, said in ((errno.EROFS, "Read-only file system"), (errno.ENOSPC, "free some space")):

        def fails(*args, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(run_folder.os, "pwrite", fails)
            with pytest.raises(UsageError, match=said):
                claim_folder(tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["checkpoints", "figures", "metrics.jsonl", "summary.json"])
def test_things_of_the_wrong_kind_or_without_rights_are_named(tmp_path, monkeypatch, name):
    path = tmp_path / name
    if "." in name:
        path.mkdir()
    else:
        path.write_text("")
    with pytest.raises(UsageError, match=name):
        check_writable(tmp_path)
    if "." in name:
        path.rmdir()
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()
    check_writable(tmp_path)
    monkeypatch.setattr(run_folder.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UsageError, match=f"{name} may not be written"):
        check_writable(tmp_path)


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_whole(path, "old")
    genuine = Path.write_text

    def half(self, text, **options):
        genuine(self, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UsageError, match=r"config\.json cannot be written .*free some space"), writing(path):
        write_whole(path, "a new text")
    monkeypatch.undo()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    append_line(path, "città")
    assert path.read_text(encoding="utf-8") == "oldcittà\n"
