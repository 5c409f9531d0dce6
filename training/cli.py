"""The command line of a script (a recipe's name, then any field of its Config) and how programs end."""

import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from training.errors import TrainingDiverged, UsageError
from training.terminal import make_printing_safe

C = TypeVar("C")


def parse_config(recipes: dict[str, tuple[str, C]], description: str, args: list[str] | None = None) -> C:
    """The Config that `RECIPE [--flag value ..]` asks for; exits with code 2 on a wrong name or flag.

    `recipes` maps each name to (one line of help, Config). `--max_tokens` and `--max-tokens` are the same.
    """
    return tyro.extras.overridable_config_cli(recipes, description=description, args=args, use_underscores=True)


def run_script(
    main: Callable[[C], None],
    recipes: dict[str, tuple[str, C]],
    description: str,
    user_errors: tuple[type[Exception], ...] = (),
) -> None:
    """Parse the command line, run `main` and turn its end into the exit code that the scripts share.

    0 done; 1 for a run that diverged and 2 for UsageError and `user_errors`, with one line on stderr each;
    130 and 143 after SIGINT and SIGTERM.
    """
    make_printing_safe()
    config = parse_config(recipes, description)
    # Before the loop takes the signal over there is nothing to save: end at once, with the right code.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main(config)
    except (UsageError, TrainingDiverged, *user_errors) as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(error, TrainingDiverged) else 2)
    except KeyboardInterrupt:
        sys.exit(130)


def run_tool(main: Callable[[], None], stdout_is_the_result: bool = False) -> None:
    """Run a tool whose terminal may lack letters, be closed or go away, without a traceback at Ctrl-C.

    Where `stdout_is_the_result`, the tool ends once nobody reads it (141, quietly, as programs do that SIGPIPE
    ends) or it cannot be written (2, with the reason); else it goes on, for its result is in files.
    """
    make_printing_safe(when_stdout_is_lost=_end_for_want_of_stdout if stdout_is_the_result else None)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        sys.stdout.flush()  # here, where it may still end the program, and not in Python's shutdown


def _end_for_want_of_stdout(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
        sys.exit(128 + signal.SIGPIPE)
    print(f"error: stdout cannot be written: {error.strerror}", file=sys.stderr)
    sys.exit(2)
