"""The command line of a script: a recipe's name, then any field of its Config."""

import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from training.errors import TrainingDiverged, UsageError

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
