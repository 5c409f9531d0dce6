"""Being asked to end: SIGTERM, Ctrl-C, a terminal that hangs up, and a launcher that is gone.

While a run has nothing to save, a signal ends it at once. While it trains, the signal is only noted, and the loop
saves a checkpoint and ends. Python runs its handlers between two lines of the main thread, so a long call into
other languages (a tokenizer, a collective of several processes) would keep it deaf: a thread watches beside it.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

SAME = 0.5  # seconds within which a second signal is the same: `timeout` sends it to a process and to its group
RESENT = 3.0  # the same of SIGTERM: Slurm sends it to all of a job and srun hands it on, as elastic launchers do
PATIENCE = 3.0  # seconds after which the thread says what is waited for, or ends what has nothing to save
_ROOT = Path(__file__).resolve().parent.parent
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """The signals of this process; there is one object of it, `stop_signals`.

    `number` is the first signal that asked to end, here or in another process of the run; None before. `deferred`
    says that it is only noted, because a loop asks for it, saves and ends.

    A terminal that hangs up (SIGHUP) ends nothing, except where several processes were launched: their launcher
    ends with the terminal and would kill them half a minute later, so they take it for SIGTERM.
    """

    def __init__(self):
        self.number: int | None = None
        self.deferred = False
        self._first_at: float | None = None
        self._ends_at: float | None = None

    def defer(self) -> None:
        """From here on a first signal is only noted in `number`."""
        self.number, self.deferred, self._first_at, self._ends_at = None, True, None, None
        self._install()

    def release(self) -> None:
        """From here on a signal ends the process at once; so does one that came before."""
        self.deferred = False
        if self.number is not None:
            sys.exit(128 + self.number)

    def end_within(self, seconds: float) -> None:
        """Everything is saved: a way out that takes longer, because another process is gone, is cut short."""
        self._ends_at = time.monotonic() + seconds

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End at a signal, and at the end of the launcher, whatever the main thread is busy with."""
        handlers = {number: signal.getsignal(number) for number in _STOPS}
        self.number, self.deferred, self._first_at, self._ends_at = None, False, None, None
        self._install()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading, _launcher()), daemon=True, name="signals").start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(writing)  # ends the thread

    def _install(self) -> None:
        for number in _STOPS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        """In the main thread, between two lines of Python."""
        if not _asks_to_end(number):
            return
        if self._first_at is None:  # the first here: of `number` another process may have told
            self._first_at, self.number = time.monotonic(), self.number or number
            if not self.deferred:
                sys.exit(128 + number)
        elif _asks_again(number, time.monotonic() - self._first_at):  # do not wait for the checkpoint
            sys.exit(128 + number)

    def _watch(self, reading: int, launcher: int | None) -> None:
        """In a thread of its own; a byte comes for each signal, before the main thread handles it."""
        first, first_at, said = None, 0.0, False
        while True:
            ready, _, _ = select.select([reading], [], [], 0.5)
            now = time.monotonic()
            if ready:
                numbers = os.read(reading, 64)
                if not numbers:
                    os.close(reading)
                    return
                for number in numbers:
                    if number == signal.SIGHUP and not _asks_to_end(number):
                        launcher = None  # it went with the terminal
                    elif number in _STOPS and first is None:
                        first, first_at = number, now
                    elif number in _STOPS and _asks_again(number, now - first_at):
                        os._exit(128 + number)
            elif launcher is not None and os.getppid() != launcher and first is None and self.number is None:
                launcher = None
                _say("the launcher is gone: this run ends as at SIGTERM")
                os.kill(os.getpid(), signal.SIGTERM)
            if first is not None and not said and now - first_at > PATIENCE:
                said, name = True, signal.Signals(first).name
                if not self.deferred:
                    _say(f"{name}: ended during {_busy_with()}")
                    os._exit(128 + first)
                _say(f"{name}: a checkpoint is saved after {_busy_with()}; a second {name} ends the run without")
            if self._ends_at is not None and now > self._ends_at:
                os._exit(128 + (self.number or signal.SIGTERM))


def _asks_to_end(number: int) -> bool:
    return number != signal.SIGHUP or int(os.environ.get("WORLD_SIZE", "1")) > 1


def _asks_again(number: int, seconds: float) -> bool:
    """Whether a signal so long after the first one is another, and not that one sent twice."""
    return seconds > (RESENT if number == signal.SIGTERM else SAME)


def _launcher() -> int | None:
    """The process id of the parent if it is a launcher, whose end is to end this run; else None.

    A launcher is known by its command line: `accelerate`, `torchrun`, `torch.distributed.run` or `deepspeed`.
    Another parent, such as a shell, may go: that is how `nohup` and `setsid` leave a run behind. A process that a
    launcher started (its variables tell) and that init has adopted was left before it could look.
    """
    parent = os.getppid()
    try:
        command = psutil.Process(parent).cmdline()[:6]
    except psutil.Error:
        command = []
    programs = {Path(word).name for word in command}
    modules = ("accelerate.", "torch.distributed.", "deepspeed.")
    if programs & {"accelerate", "accelerate-launch", "torchrun", "deepspeed"}:
        return parent
    if any(word.startswith(modules) for word in command):
        return parent
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ
    return 0 if parent == 1 and launched else None  # 0: gone already


def _busy_with() -> str:
    """What of this project the main thread is in: `function (file, line n)`. Not models, whose callers say more."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None  # None only before a thread has started
    frame = sys._current_frames().get(main_thread)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_ROOT) and "site-packages" not in file.parts:
            place = file.relative_to(_ROOT)
            if place.parts[0] != "models":
                return f"{frame.f_code.co_name} ({place}, line {frame.f_lineno})"
        frame = frame.f_back
    return "what it is doing"


def _say(text: str) -> None:
    """A line on stderr, past Python's buffers: the main thread may hold them, or the terminal may be stuck."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        line = ("\n" if stop_signals.deferred else "") + text + "\n"  # below the progress bar
        thread = threading.Thread(target=_write, args=(line.encode(),), daemon=True)
        thread.start()
        thread.join(0.5)


def _write(line: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody is there to read it
        os.write(2, line)


stop_signals = StopSignals()


def _forget_in_child() -> None:
    """A forked process (a worker of a data set) ends at a signal, and does not tell its parent of it."""
    for number in _STOPS:
        if signal.getsignal(number) == stop_signals._handle:
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)
