from dataclasses import dataclass, fields

import pytest

from training.cli import parse_config
from training.config_source import field_sources


@dataclass(frozen=True, kw_only=True)
class Base:
    recipe: str  # its name
    # --- run
    log_every: int = 20  # updates between log lines


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """A docstring is no field."""

    # --- data
    files: tuple[str, ...] = ()  # own text
    likelihood: str = "bernoulli"  # of pixels
    # an ordinary comment
    silent: int = 1
    # --- model, of one kind
    width: int = 8  # channels


def test_each_field_has_the_comment_behind_it_and_the_heading_above():
    sources = field_sources(Config)
    assert sources["files"] == ("data", "own text")
    assert sources["likelihood"] == ("data", "of pixels")
    assert sources["silent"] == ("data", "")
    assert sources["width"] == ("model, of one kind", "channels")
    assert sources["log_every"] == ("run", "updates between log lines")
    assert list(sources) == ["files", "likelihood", "silent", "width", "recipe", "log_every"]  # its own first
    assert sources.keys() == {field.name for field in fields(Config)}


def test_help_shows_the_fields_in_groups_and_the_flags_stay_flat(capsys):
    recipes = {"demo": ("the demo", Config(recipe="demo", width=4))}
    with pytest.raises(SystemExit) as end:
        parse_config(recipes, "", ["demo", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    headings = ["data options", "model options", "run options"]
    assert [shown.index(heading) for heading in headings] == sorted(shown.index(heading) for heading in headings)
    assert (
        shown.index("data options") < shown.index("--files") < shown.index("model options") < shown.index("--width")
    )
    assert "channels (default: 4)" in " ".join(shown.split())
    config = parse_config(recipes, "", ["demo", "--files", "a", "b", "--log-every", "3"])
    assert config == Config(recipe="demo", width=4, files=("a", "b"), log_every=3)
