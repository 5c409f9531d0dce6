"""The cores of a machine that are a process's own."""

import os

import psutil


def usable_cores() -> int:
    """Physical cores, of those that this process may run on: `taskset` leaves some of them to others."""
    cores = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = min(cores, len(os.sched_getaffinity(0)))
    return cores
