"""Memory for training on a CPU: what is freed is kept for the next update, kernels of shapes long past are not."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of giving it back to the system; True where that is possible.

    By default glibc maps every large block afresh, and the system clears its pages on first touch. For the
    activations of a convolutional net that is much of an update. The process holds its peak until it ends.
    Nothing happens without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    # No block of its own for anything, and nothing returned from the end of the heap (-1 is the highest size).
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def keep_few_kernels(n: int = 64) -> None:
    """Have torch keep the CPU kernels of `n` shapes at a time, where it would keep some thousand of each kind.

    For models whose shapes come and go: each kernel holds memory of its own, 1.4 of 2.4 GB after 330 updates of a
    small Transformer in bf16 (results/cpu-memory-and-waiting.txt), and few are met again before they are dropped.
    To be called before the first product; what the environment says already holds.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's
        os.environ.setdefault(variable, str(n))
