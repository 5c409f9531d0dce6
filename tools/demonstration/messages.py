"""What the page says of input that it cannot use: one line, as the command line would."""

import functools
import html
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import gradio

from data.errors import DataError
from training.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def told_in_a_line(function: Callable[P, R]) -> Callable[P, R]:
    """Makes messages on the page of the DataErrors and UsageErrors of what a button calls."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (DataError, UsageError) as error:
            said = html.escape(str(error))  # it may hold the name of a file, and the page takes HTML
            raise gradio.Error(said, print_exception=False) from error

    return wrapped
