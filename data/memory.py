"""How much memory there is, so that what cannot fit is refused in words and not by the system's killing the run."""

from pathlib import Path

import psutil

from data.errors import DataError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def total_memory() -> int:
    """Bytes of main memory that this machine, or the container that it is, has."""
    total = psutil.virtual_memory().total
    for path in LIMITS:
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):  # no such kind of container, or "max"
            continue
    return total


def require_memory(n_bytes: int, what: str, mend: str) -> None:
    """Raise DataError where `what`, of `n_bytes`, cannot fit into the memory; `mend` ends the message."""
    total = total_memory()
    if n_bytes > total:
        needed, there = n_bytes / 2**30, total / 2**30
        raise DataError(f"{what} take {needed:,.1f} GiB of the {there:,.1f} that there are: {mend}")
