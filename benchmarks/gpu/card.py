"""What the tasks of the card are made of. Each runs in a process of its own and comes back with a finding."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """How large the tasks are, and on what data they train."""

    folder: str  # for what the tasks make: corpora, pictures, runs
    tiny: bool = False  # sizes at which the tasks only show that they run
    seconds: float = 2.0  # training time of a turn
    rounds: int = 3  # turns that each variant takes
    train_files: tuple[str, ...] = ()  # corpus; without it one that is made by code
    cifar_dir: str = ""  # CIFAR-10; without it noise of the same form
    pet_dir: str = ""  # Oxford-IIIT Pet; without it textured shapes

    def made(self, name: str) -> Path:
        """A folder of this name for what a task makes."""
        path = Path(self.folder) / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True)
class Finding:
    """What a task found, in a sentence; whether it is as expected (None: not decided here); and its numbers."""

    found: str
    holds: bool | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """`expected` is what the finding is held against. Nothing else runs beside one that is `timed`."""

    name: str
    expected: str
    find: Callable[[Options], Finding]
    timed: bool = False
    needs_cuda: bool = False
