"""What the source of a Config says of its fields: the heading above each and the comment behind it.

    # --- optimization
    lr: LearningRate = 0.4  # peak of the one-cycle schedule

`--help` shows the fields in groups under their headings, each with its comment.
"""

import ast
import dataclasses
import functools
import inspect
import io
import tokenize
from typing import NamedTuple


class FieldSource(NamedTuple):
    """A field as its class's source describes it."""

    heading: str  # "" above the first heading
    help: str


def field_sources(config_class: type) -> dict[str, FieldSource]:
    """Of each field of a dataclass, its own first and those of its base classes after them."""
    found: dict[str, FieldSource] = {}
    for base in config_class.__mro__:
        if dataclasses.is_dataclass(base):
            for name, source in _own_field_sources(base).items():
                found.setdefault(name, source)
    return found


@functools.cache
def _own_field_sources(config_class: type) -> dict[str, FieldSource]:
    source = inspect.getsource(config_class)
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, FieldSource] = {}
    heading, last_line = "", 1
    for statement in definition.body:
        for line in range(last_line + 1, statement.lineno):
            if comments.get(line, "").startswith("--- "):
                heading = comments[line].removeprefix("--- ")
        last_line = statement.end_lineno or statement.lineno
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            lines = range(statement.lineno, last_line + 1)
            help_text = " ".join(comments[line] for line in lines if line in comments)
            found[statement.target.id] = FieldSource(heading, help_text)
    return found
