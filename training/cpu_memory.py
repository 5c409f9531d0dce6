"""Memory for training on a CPU: what is freed is kept for the next update."""

import ctypes

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
