"""The command line of a script (a recipe's name, then any field of its Config) and how programs end."""

import ast
import atexit
import contextlib
import dataclasses
import functools
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar, get_origin, get_type_hints

import torch
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from training.config_source import field_sources
from training.errors import TrainingDiverged, UsageError
from training.ranges import check_config, check_ranges
from training.redaction import redacted
from training.run_folder import DISK_ERRORS, cannot_write, owned_folder, release_folders
from training.signals import stop_signals
from training.terminal import make_printing_safe


class ScriptConfig(Protocol):
    """What this file asks of a script's Config: a dataclass that knows its recipe."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    @property
    def recipe(self) -> str: ...


C = TypeVar("C", bound=ScriptConfig)
Flags = TypeVar("Flags")  # a dataclass of a tool

# A file or folder: `~` is expanded, which no shell does in a sweep, a YAML or after `--output_dir=`.
PathFlag = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: os.path.expanduser(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]


def parse_config(recipes: dict[str, tuple[str, C]], description: str, args: list[str] | None = None) -> C:
    """The Config that `RECIPE [--flag value ..]` asks for; exits with code 2 on a wrong name or flag.

    `recipes` maps each name to (one line of help, Config). `--max_tokens` and `--max-tokens` are the same, and so
    are `--compile` and `--compile=True`, `--widths 8 16` and `--widths=[8, 16]`, as a sweep writes them. Raises
    UsageError for a number out of its flag's range (training/ranges.py).
    """
    _, some_config = next(iter(recipes.values()))
    args = _without_values_of_python(sys.argv[1:] if args is None else args, type(some_config))
    groups = FieldGroups(type(some_config))
    grouped = {name: (line, groups.split(config)) for name, (line, config) in recipes.items()}
    with _one_line_errors():
        parsed = tyro.extras.overridable_config_cli(
            grouped, description=description, args=args, use_underscores=True
        )
    config = groups.join(parsed)
    check_config(config)
    return config


def _without_values_of_python(args: Sequence[str], config_class: type) -> list[str]:
    """The arguments, with booleans and lists in the form of a command line instead of Python's."""
    hints = get_type_hints(config_class)
    plain = []
    for arg in args:
        flag, _, value = arg.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        kind = hints.get(name) if flag.startswith("--") else None
        if kind is bool and value in ("True", "False"):
            plain.append(f"--{name}" if value == "True" else f"--no_{name}")
        elif get_origin(kind) is tuple and value.startswith("["):
            plain += [f"--{name}", *_words_of_list(value)]
        else:
            plain.append(arg)
    return plain


def _words_of_list(text: str) -> list[str]:
    """ "[[8, 16], 32]" becomes 8 16 32; what is no list stays as it is."""
    try:
        values = [ast.literal_eval(text)]
    except (SyntaxError, ValueError):
        return [text]
    words = []
    while values:
        value = values.pop(0)
        if isinstance(value, list):
            values = value + values
        else:
            words.append(str(value))
    return words


class FieldGroups(Generic[C]):
    """A Config's fields in one dataclass a heading, which is how tyro shows them in groups."""

    def __init__(self, config_class: type[C]):
        self.config_class = config_class
        hints = get_type_hints(config_class, include_extras=True)
        self._fields: dict[str, list[str]] = {}  # names of the fields by the name of their group
        for name, source in field_sources(config_class).items():
            heading = source.heading.partition(",")[0] or "other"
            self._fields.setdefault(heading.replace(" ", "_").replace("-", "_"), []).append(name)
        helps = {name: source.help for name, source in field_sources(config_class).items()}
        self._groups = {
            group: dataclasses.make_dataclass(
                group,
                [
                    (name, Annotated[hints[name], tyro.conf.arg(help=helps[name], prefix_name=False)])
                    for name in names
                ],
                frozen=True,
            )
            for group, names in self._fields.items()
        }
        members = [(group, Annotated[kind, tyro.conf.arg(help="")]) for group, kind in self._groups.items()]
        self._whole = dataclasses.make_dataclass(config_class.__name__, members, frozen=True)

    def split(self, config: C) -> Any:
        """A Config as groups of fields."""
        parts = {
            group: kind(**{name: getattr(config, name) for name in self._fields[group]})
            for group, kind in self._groups.items()
        }
        return self._whole(**parts)

    def join(self, parts: Any) -> C:
        """The Config of groups of fields."""
        values = {
            name: getattr(getattr(parts, group), name) for group in self._groups for name in self._fields[group]
        }
        return self.config_class(**values)


def parse_flags(kind: type[Flags], description: str, args: list[str] | None = None) -> Flags:
    """Likewise for a tool: the dataclass `kind` that the flags ask for."""
    with _one_line_errors():
        flags = tyro.cli(kind, description=description, args=args, use_underscores=True)
    check_config(flags)
    return flags


_given: frozenset[str] | None = None  # the flags on the command line of the script that runs


def flags_given(config: C, recipes: dict[str, tuple[str, C]]) -> frozenset[str]:
    """Names of the fields that the user has set: on the command line, or, without one, unlike the recipe."""
    names = frozenset(field.name for field in dataclasses.fields(config))
    if _given is not None:
        return names & _given
    _, recipe = recipes[config.recipe]
    return frozenset(name for name in names if getattr(config, name) != getattr(recipe, name))


def refuse_options_of_other_models(
    config: C, recipes: dict[str, tuple[str, C]], options: Mapping[str, Sequence[str]], choice: str = "model"
) -> None:
    """Raise UsageError where a flag was set that only a model other than `config.model` has.

    `options`: the flags of each model that are its own. Another `choice` than "model" likewise: the name of a flag.
    """
    _, recipe = recipes[config.recipe]
    given = flags_given(config, recipes)
    chosen = getattr(config, choice)
    for name in dict.fromkeys(name for names in options.values() for name in names):
        differs = getattr(config, name) != getattr(recipe, name)
        if name not in options.get(chosen, ()) and differs and name in given:
            raise UsageError(f"--{name} is none of the options of --{choice} {chosen}")


def _flags_in(args: list[str]) -> frozenset[str]:
    """`--max-tokens=1`, `--max_tokens 1` -> max_tokens; `--no-flip` -> no_flip and flip."""
    flags = {arg.removeprefix("--").partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")}
    return frozenset(flags | {flag.removeprefix("no_") for flag in flags})


def run_script(
    main: Callable[[C], None],
    recipes: dict[str, tuple[str, C]],
    description: str,
    user_errors: tuple[type[Exception], ...] = (),
) -> None:
    """Parse the command line, run `main` and turn its end into the exit code that the scripts share.

    0 done; 1 for a run that diverged; 2 for UsageError, `user_errors`, a disk or memory that is full; a line each;
    130 and 143 after SIGINT and SIGTERM.
    """
    make_printing_safe()
    with stop_signals.watched():
        try:
            code = _run(lambda: _parse_and_call(main, recipes, description), user_errors)
        except Exception:
            if not _is_one_of_several():
                raise
            sys.excepthook(*sys.exc_info())  # its traceback, as Python's end would show it, which is skipped below
            code = 1
    if _is_one_of_several():
        _end_at_once(code)
    if code:
        sys.exit(code)


def _parse_and_call(main: Callable[[C], None], recipes: dict[str, tuple[str, C]], description: str) -> None:
    global _given
    config = parse_config(recipes, description)
    _given = _flags_in(sys.argv[1:])
    try:
        main(config)
    finally:
        _given = None


def _run(main: Callable[[], None], user_errors: tuple[type[Exception], ...]) -> int:
    told_in_a_line: tuple[type[Exception], ...] = (UsageError, TrainingDiverged, *user_errors)
    try:
        main()
    except told_in_a_line as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(f"error: {redacted(str(error))}", file=sys.stderr, flush=True)
        return 1 if isinstance(error, TrainingDiverged) else 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = error.filename or owned_folder() or "what a run writes"
        print(f"error: {cannot_write(where, error, training=True)}", file=sys.stderr, flush=True)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _memory_ran_out(error):
            raise
        print(f"error: {_too_large(error)}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        return end.code or 0
    finally:
        release_folders()
    return 0


def _is_one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _end_at_once(code: int) -> None:
    """End this process without Python's shutdown, where the process group's threads may hang or crash it."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _memory_ran_out(error: Exception) -> bool:
    """Whether numpy, torch on a GPU or torch on a CPU, which has no error of its own for it, got no memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _too_large(error: Exception) -> str:
    wanted = re.search(r"allocate ([\d,.]+ \w+)", str(error))
    return (
        f"out of memory{f', {wanted[1]} more were wanted' if wanted else ''}: lower --batch_size or --max_tokens, "
        "and --eval_batch_size, with more --gradient_accumulation_steps if the updates are to stay as large"
    )


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


def call_with_flags(main: Callable[..., None], args: list[str] | None = None) -> None:
    """Call `main` with what the command line gives it; exits with code 2, after a line, where that is wrong."""

    @functools.wraps(main)
    def parse(**arguments) -> dict:
        return arguments

    with _one_line_errors():
        arguments = tyro.cli(parse, args=args, use_underscores=True)
    try:
        check_ranges(arguments, get_type_hints(main, include_extras=True))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    main(**arguments)


def call_with_config(
    main: Callable[[Flags], None],
    kind: type[Flags],
    description: str,
    args: list[str] | None = None,
    user_errors: tuple[type[Exception], ...] = (),
) -> None:
    """Call `main` with the dataclass `kind` that the flags ask for.

    Exits with code 2, after a line, where they are wrong or `main` raises UsageError or one of `user_errors`.
    """
    expected: tuple[type[Exception], ...] = (UsageError, *user_errors)
    try:
        main(parse_flags(kind, description, args))
    except expected as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """What tyro says in a box of many lines, of a wrong flag, becomes one line on stderr."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            yield
    except SystemExit as end:
        if end.code == 2:
            print(f"error: {_in_one_line(shown.getvalue())}", file=sys.stderr, flush=True)
        raise


def _in_one_line(box: str) -> str:
    """The text of tyro's box: what is wrong, and the flags or recipes that may have been meant."""
    plain = re.sub("\x1b\\[[0-9;]*m", "", box)  # without colours, and now without frame and title
    _, *lines = re.sub("[│╰╯]", " ", plain).splitlines()
    said = []
    for section in re.split("[─-]{10,}", "\n".join(lines)):
        first, *others = [line.strip() for line in section.splitlines() if line.strip()] or [""]
        if first == "Perhaps you meant:":
            others = list(dict.fromkeys(line for line in others if line.startswith("-")))
            said.append(f"perhaps you meant {', '.join(others)}")
        elif first == "Argument helptext:":
            said.append(f"it takes {others[0]}")
        elif first.startswith("For full helptext"):
            said.append("f" + " ".join([first, *others])[1:])
        elif first:
            said.append(" ".join([first, *others]).rstrip("."))
    return "; ".join(said)
