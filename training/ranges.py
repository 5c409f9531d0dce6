"""The ranges of numeric flags, as types that a script's Config names: `epochs: Epochs = 24`.

A number is read from the command line whatever it is, and `check_ranges` says of one that is out of its range what
to give instead. Upper bounds are far above what anyone trains with: they catch slips of the finger, which would
else take all memory or never end.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec

from training.errors import UsageError


@dataclass(frozen=True)
class Range:
    """The numbers that a flag takes: `at_least` or more than `above`, and `at_most` or less than `below`."""

    kind: type[int] | type[float]
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def mend(self, value: Any) -> str | None:
        """What to give instead of `value`, in a few words; None for a number in range."""
        is_number = isinstance(value, int | float) and (self.kind is float or isinstance(value, int))
        if not is_number or math.isnan(value):
            return f"give a {'whole ' * (self.kind is int)}number, {self._lower} and {self._upper}"
        lowest, highest = self.at_least, self.at_most
        if value <= self.above if lowest is None else value < lowest:
            return f"give {self._lower}"
        if value >= self.below if highest is None else value > highest:
            return f"give {self._upper}"
        return None

    @property
    def _lower(self) -> str:
        return f"more than {self.above}" if self.at_least is None else f"at least {self.at_least:,}"

    @property
    def _upper(self) -> str:
        return f"less than {self.below}" if self.at_most is None else f"at most {self.at_most:,}"


def _flag(kind: type[int] | type[float], **bounds: float) -> tuple[Range, PrimitiveConstructorSpec]:
    """The range, and how tyro reads the flag: text that is no number stays text, for `check_ranges` to name it."""

    def read(words: list[str]) -> int | float | str:
        try:
            return kind(words[0])
        except ValueError:
            return words[0]

    spec = PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )
    return Range(kind, **bounds), spec


# Whole numbers
Count = Annotated[int, *_flag(int, at_least=0, at_most=10**9)]  # of which 0 is none, or has a meaning of its own
PositiveInt = Annotated[int, *_flag(int, at_least=1, at_most=10**9)]
Epochs = Annotated[int, *_flag(int, at_least=1, at_most=10**6)]
BatchSize = Annotated[int, *_flag(int, at_least=1, at_most=10**6)]  # examples
Parts = Annotated[int, *_flag(int, at_least=1, at_most=10**6)]  # that a batch is cut into
Width = Annotated[int, *_flag(int, at_least=1, at_most=10**6)]  # channels or features of a layer
Layers = Annotated[int, *_flag(int, at_least=1, at_most=200)]
Halvings = Annotated[int, *_flag(int, at_least=1, at_most=12)]  # of an image's side
Components = Annotated[int, *_flag(int, at_least=1, at_most=1000)]  # of a mixture
Columns = Annotated[int, *_flag(int, at_least=1, at_most=1000)]  # of a grid of pictures
Draws = Annotated[int, *_flag(int, at_least=0, at_most=10**5)]  # of which each takes a forward pass
ImageSide = Annotated[int, *_flag(int, at_least=8, at_most=4096)]  # pixels
Pixels = Annotated[int, *_flag(int, at_least=0, at_most=4096)]
MaskValue = Annotated[int, *_flag(int, at_least=-1, at_most=255)]  # -1 has a meaning of its own
PatchSide = Annotated[int, *_flag(int, at_least=1, at_most=1024)]  # pixels
Seed = Annotated[int, *_flag(int, at_least=0, at_most=2**31 - 1)]  # numpy's and torch's, with room for processes
TokenBudget = Annotated[int, *_flag(int, at_least=2, at_most=10**7)]
VocabularySize = Annotated[int, *_flag(int, at_least=1, at_most=10**6)]
Port = Annotated[int, *_flag(int, at_least=1, at_most=65535)]
BeamSize = Annotated[int, *_flag(int, at_least=1, at_most=1000)]

# Numbers with a fraction
Share = Annotated[float, *_flag(float, at_least=0, at_most=1)]
ShareBelowOne = Annotated[float, *_flag(float, at_least=0, below=1)]  # dropout, momentum, decay of an average
ShareAboveZero = Annotated[float, *_flag(float, above=0, at_most=1)]
HalfShare = Annotated[float, *_flag(float, at_least=0, at_most=0.5)]
Degrees = Annotated[float, *_flag(float, at_least=0, at_most=180)]
LearningRate = Annotated[float, *_flag(float, above=0, at_most=100)]
RateDivisor = Annotated[float, *_flag(float, above=0, at_most=10**9)]
RateFactor = Annotated[float, *_flag(float, at_least=0, at_most=10**4)]
WeightDecay = Annotated[float, *_flag(float, at_least=0, at_most=100)]
GradientNorm = Annotated[float, *_flag(float, at_least=0, at_most=10**9)]
Weight = Annotated[float, *_flag(float, at_least=0, at_most=10**6)]
Temperature = Annotated[float, *_flag(float, at_least=0, at_most=100)]
LengthRatio = Annotated[float, *_flag(float, at_least=0, at_most=10**6)]  # of which 0 is what suits the corpus
LengthPower = Annotated[float, *_flag(float, at_least=-10, at_most=10)]


def check_ranges(values: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Raise UsageError for the first flag whose value is out of the range that its annotation holds.

    `annotations` as `typing.get_type_hints(.., include_extras=True)` gives them. None is no number and passes.
    """
    for name, annotation in annotations.items():
        for limits, value in ranges_of(annotation, values.get(name)):
            if value is not None and (mend := limits.mend(value)):
                raise UsageError(f"--{name} {value}: {mend}")


def check_config(config: Any) -> None:
    """`check_ranges` of a dataclass."""
    check_ranges(vars(config), get_type_hints(type(config), include_extras=True))


def ranges_of(annotation: Any, value: Any) -> Iterator[tuple[Range, Any]]:
    """Each number in `value`, however deep in tuples, with the range that `annotation` has for it."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        found = [extra for extra in metadata if isinstance(extra, Range)]
        yield from ((limits, value) for limits in found)
        yield from () if found else ranges_of(inner, value)
    elif get_origin(annotation) is tuple:
        kinds = get_args(annotation)
        kinds = kinds[:1] * len(value or ()) if kinds[1:] == (...,) else kinds
        for kind, element in zip(kinds, value or (), strict=False):
            yield from ranges_of(kind, element)
    else:  # X | None
        for kind in get_args(annotation):
            yield from ranges_of(kind, value)
