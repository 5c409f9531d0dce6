"""Standard streams that never raise: whatever a terminal can or can't do, the work goes on without it."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO


class _Descriptor(io.RawIOBase):
    """Writes to a file descriptor; what it does not take (reader gone, disk full) is dropped.

    `when_lost` is called with the error of the first write that fails.
    """

    def __init__(self, number: int, when_lost: Callable[[OSError], None] | None = None):
        self._number, self._when_lost = number, when_lost

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._number, left) :]
            except BlockingIOError:  # another program has set the terminal so; wait as a blocking one would
                select.select([], [self._number], [])
            except OSError as error:
                when_lost, self._when_lost = self._when_lost, None
                if when_lost:
                    when_lost(error)
                break
        return len(data)


def make_printing_safe(when_stdout_is_lost: Callable[[OSError], None] | None = None) -> None:
    """From here on no print, progress bar or warning raises, nor does Python's last flush at the exit.

    Letters that the stream's encoding lacks are written as escapes, such as `\\xe9`. What a stream does not take,
    because its reader is gone or the disk full, is dropped; `when_stdout_is_lost` may end the program instead.
    Streams that were closed from the start lead to os.devnull, so that none of the program's own files is opened
    under their number and written to by a print. Streams that are no descriptors (a notebook's) stay as they are.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (stays open)
    sys.stdout = _safe(sys.stdout, 1, when_stdout_is_lost)
    sys.stderr = _safe(sys.stderr, 2)


def _safe(stream: TextIO | None, number: int, when_lost: Callable[[OSError], None] | None = None) -> TextIO:
    if stream is None:  # closed before Python started, and its number may be another file's by now
        return open(os.devnull, "w", encoding="utf-8")
    try:
        if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != number:
            return stream
    except (OSError, ValueError):  # no descriptor behind it, or closed
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = _Descriptor(number, when_lost)
    written_to: Any = raw if stream.write_through else io.BufferedWriter(raw)  # written through: runs unbuffered
    return io.TextIOWrapper(
        written_to,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
