"""A run's folder: one run owns it while it lives, and what keeps a run from writing there is said in one line.

The owner holds a lock (flock) on `run.lock` in the folder. The system lets go of it when the process ends, however
it ends, so a lock file that a kill left behind is in nobody's way. Only the main process of a run calls these.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from training.errors import UsageError
from training.redaction import redacted

LOCK = "run.lock"
EARLIER = "earlier."  # subfolders for earlier runs, where the folder itself cannot be renamed
FOLDERS_OF_A_RUN = ("checkpoints", "figures")
FILES_OF_A_RUN = ("config.json", "metrics.jsonl", "summary.json")
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # of writing, whatever was written


@dataclass
class _Claim:
    """What this process holds of a folder."""

    handle: int | None  # the open lock file; None where the file system has no locks
    made: list[Path]  # folders that were not there before, deepest first


_claims: dict[Path, _Claim] = {}  # by resolved folder; a process does one run after another


def cannot_write(path: Path | str, error: OSError, training: bool = False) -> UsageError:
    """The one line for a failed write: what, why, the mend, which once a run is `training` is to resume it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if training:
        mend = f"{'free some space' if full else 'mend that'}, then go on with --resume latest"
    else:
        mend = "free some space, or name another --output_dir" if full else "name another --output_dir"
    return UsageError(f"{path} cannot be written ({error.strerror or error}): {mend}")


@contextmanager
def writing(path: Path, training: bool = False) -> Iterator[None]:
    """Raise UsageError, naming what could not be written, in the place of any OSError of the body."""
    try:
        yield
    except OSError as error:
        raise cannot_write(error.filename or path, error, training) from error


def write_whole(path: Path, text: str) -> None:
    """Replace a file's text at once: a full disk or a kill leaves the old one."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line, all of it or, on a full disk, nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        content = f"{line}\n".encode()
        try:
            written = file.write(content)
            if written < len(content):
                file.write(content[written:])
        except OSError:
            file.truncate(size)
            raise


# -- the owner --------------------------------------------------------------------------------------------


def claim_folder(folder: Path) -> None:
    """Make the folder if need be and own it until `release_folders` or this process's end; again: no effect.

    Raises UsageError where another run owns it, or where it cannot be made or written.
    """
    made = _make_folder(folder)
    real = folder.resolve()
    if real in _claims:
        if _is_in_place(_claims[real].handle, real / LOCK):
            return
        _release(real)  # the folder was removed behind our back
        made += _make_folder(folder)
    handle = _lock(folder)
    try:
        if handle is not None:
            owner = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": redacted(shlex.join(sys.argv)),
            }
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(owner).encode(), 0)
    except OSError as error:
        _claims[real] = _Claim(handle, made)
        _release(real)
        raise cannot_write(folder, error) from error
    _claims[real] = _Claim(handle, made)


def release_folders() -> None:
    """Let go of every folder that this process owns; those that it made and left empty are removed."""
    for real in list(_claims):
        _release(real)


def release_folder(folder: Path) -> None:
    """Let go of one folder, if this process owns it."""
    real = folder.resolve()
    if real in _claims:
        _release(real)


def owned_folder() -> Path | None:
    """The folder that this process came to own last; None where it owns none."""
    return next(reversed(_claims), None)


def _make_folder(folder: Path) -> list[Path]:
    """Make it and its parents; returns those that were not there, deepest first."""
    missing = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for path in (folder, *folder.parents):
            if os.path.islink(path) and not os.path.exists(path):
                raise UsageError(
                    f"--output_dir {folder}: {path} is a link to {os.readlink(path)}, which is not there: make it, "
                    "or name another --output_dir"
                ) from error
            if os.path.isfile(path):
                raise UsageError(
                    f"--output_dir {folder}: {path} is a file, not a folder: name another --output_dir"
                ) from error
        raise cannot_write(folder, error) from error
    return missing


def _lock(folder: Path) -> int | None:
    """The lock file, open and locked; None where the file system has no locks."""
    path = folder / LOCK
    for _ in range(1000):
        try:
            folder.mkdir(parents=True, exist_ok=True)  # the last owner may have removed what it had made
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(
                    f"{folder} belongs to a run that is still going on ({_owner(path)}): "
                    "name another --output_dir, or wait for it or stop it"
                ) from error
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): see to it that no other run writes there",
                file=sys.stderr,
                flush=True,
            )
            return None
        if _is_in_place(handle, path):
            return handle
        os.close(handle)  # the last owner removed or moved it in between: take the one that is there now
    raise UsageError(f"{path} cannot be made or comes and goes: name another --output_dir")


def _is_in_place(handle: int | None, path: Path) -> bool:
    """Whether the open lock file is the one that others would find under `path`."""
    try:
        return handle is None or os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(lock: Path) -> str:
    for _ in range(10):  # it may have locked the file, but not written it yet
        try:
            owner = json.loads(lock.read_text(encoding="utf-8"))
            command = owner["command"] if len(owner["command"]) <= 200 else owner["command"][:197] + "..."
            command = " ".join(command.split())
            return f"process {owner['pid']} on {owner['host']}, since {owner['since']}: {command}"
        except (OSError, ValueError, KeyError):
            time.sleep(0.1)
    return f"see who holds {lock}"


def _release(real: Path) -> None:
    claim = _claims.pop(real)
    with suppress(OSError):  # on a disk that can no longer be written the file may stay: it is in nobody's way
        if claim.handle is None or _is_in_place(claim.handle, real / LOCK):
            (real / LOCK).unlink()
        for path in claim.made:
            path.rmdir()  # only where nothing was written there
    if claim.handle is not None:
        os.close(claim.handle)


def _forget_after_fork() -> None:
    """A forked child shares the lock and would keep it alive: it closes its copy, which unlocks nothing."""
    for claim in _claims.values():
        if claim.handle is not None:
            os.close(claim.handle)
    _claims.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


# -- what lies in it --------------------------------------------------------------------------------------


def holds_a_run(folder: Path) -> bool:
    """Whether an earlier run has left anything that a new one would mix with its own."""
    return any(os.path.lexists(folder / name) for name in (*FILES_OF_A_RUN, "checkpoints"))


def move_run_aside(folder: Path) -> Path:
    """Rename a folder that this process owns to the first free `<name>.<n>` and own an empty one in its place.

    What cannot be renamed (a mount point, the working folder, a folder in one that is not ours) keeps its place,
    and its content goes to a subfolder `earlier.<n>`. Returns where the run lies now.

    Raises UsageError where a run below it is still going on, or another run has taken the emptied place.
    """
    real = folder.resolve()
    for lock in real.rglob(LOCK):
        if lock.parent != real and is_owned(lock.parent):
            raise UsageError(
                f"{folder} holds an earlier run, and {lock.parent} in it belongs to one that is still going on "
                f"({_owner(lock)}): name another --output_dir, or wait for it or stop it"
            )
    if not Path.cwd().is_relative_to(real):
        n = 1
        while os.path.lexists(aside := real.with_name(f"{real.name}.{n}")):
            n += 1
        try:
            real.rename(aside)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        else:
            claim = _claims.pop(real)
            with suppress(OSError):
                (aside / LOCK).unlink()
            if claim.handle is not None:
                os.close(claim.handle)
            claim_folder(real)
            return aside
    return _move_content_aside(real)


def _move_content_aside(real: Path) -> Path:
    names = [n for n in os.listdir(real) if n not in (LOCK, "lost+found") and not n.startswith(EARLIER)]
    n = 1  # a subfolder with other names in it is of a move that a kill cut short: it is completed
    while any(os.path.lexists(real / f"{EARLIER}{n}" / name) for name in names):
        n += 1
    aside = real / f"{EARLIER}{n}"
    aside.mkdir(exist_ok=True)
    for name in sorted(names, key=lambda name: name == "config.json"):  # last: until then the run is seen here
        (real / name).rename(aside / name)
    return aside


def is_owned(folder: Path) -> bool:
    """Whether a run that is still going on owns it. Needs no right to write there."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may ask at the same moment
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(handle)
    return False


def check_writable(folder: Path) -> None:
    """Raise UsageError where what a run writes into would fail only hours later: wrong kinds, missing rights."""
    for name in (*FILES_OF_A_RUN, *FOLDERS_OF_A_RUN):
        path = folder / name
        if not os.path.lexists(path):
            continue
        if path.is_dir() != (name in FOLDERS_OF_A_RUN):
            wanted = "a folder" if name in FOLDERS_OF_A_RUN else "a file"
            raise UsageError(f"{path} is not {wanted}: move it away, or name another --output_dir")
        if not os.access(path, os.W_OK):
            raise UsageError(f"{path} may not be written: give yourself the right, or name another --output_dir")
