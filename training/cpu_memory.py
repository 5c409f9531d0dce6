"""Memory for training on a CPU: what is freed is kept for the next update, and so are the kernels of its shapes."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of giving it back to the system; True where that is possible.

    By default glibc maps every large block afresh, and the system clears its pages on first touch. For the
    activations of a convolutional net that is much of an update. From then on the process holds its peak until it
    ends, so what takes much memory for a while comes before. Nothing happens without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    # No block of its own for anything, and nothing returned from the end of the heap (-1 is the highest size).
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def keep_kernels(n: int = 4096) -> None:
    """Have oneDNN keep the CPU kernels of the last `n` products of different shapes, where it would keep 1,024.

    For models whose shapes come and go. A Transformer's epoch has batches of dozens of shapes, with some thirty
    products each; to make the kernel of one takes longer than the product itself, and more threads do not help. The
    first updates gain most, 4 % (results/cpu-memory-and-waiting.txt). To be called before the first product; what
    the environment says already holds.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(n))
