"""Of each entry whether its record stands, and what is left to do for it on this machine."""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tools.published.catalogue import DATA_VARIABLE, Entry
from tools.published.code_fingerprint import changed_since, commit_of, fingerprint
from tools.published.tables import read_record
from training.checkpoints import list_checkpoints, step_of
from training.metrics import read_metrics
from training.run_folder import write_whole


@dataclass(frozen=True)
class Origin:
    """What a run is made by; kept beside its folder, so that it is gone on with by the same alone."""

    command: str
    code: str  # fingerprint
    commit: str | None


@dataclass(frozen=True)
class SeedState:
    """How far a seed's run is that today's code and flags have made."""

    seed: int
    step: int | None = None  # updates at its newest checkpoint; None: it is to be begun
    minutes: float = 0.0  # that it has taken up to there
    done: bool = False


@dataclass(frozen=True)
class EntryState:
    """Whether the record of an entry stands."""

    entry: Entry
    status: Literal["ok", "stale", "cut", "missing"]
    why: str
    seeds: list[SeedState]
    obstacle: str = ""  # why it cannot be made here; empty: it can

    @property
    def minutes(self) -> float:
        """What making the record would take."""
        return 0.0 if self.status == "ok" else sum(minutes_left(self.entry, seed) for seed in self.seeds)


def minutes_left(entry: Entry, seed: SeedState) -> float:
    """What a seed would take still, at the speed of the entry's hardware."""
    return 0.0 if seed.done else max(entry.minutes - seed.minutes, 0.0)


class States:
    """The states of entries at the code of now; each script is read once. `data`: the data's folder, or ""."""

    def __init__(self, root: Path, data: str):
        self.root, self.data = root, data
        self._code = functools.cache(lambda script, launch: fingerprint(script, launch, root))
        self._changed = functools.cache(lambda commit, script: changed_since(commit, script, root))

    def origin(self, entry: Entry, seed: int) -> Origin:
        """What a run of this seed would be made by now."""
        return Origin(
            entry.command(seed), self._code(entry.script, entry.launch), commit_of(entry.script, self.root)
        )

    def of(self, entry: Entry) -> EntryState:
        """The state of an entry."""
        seeds = [self.of_seed(entry, seed) for seed in entry.seeds]
        record = read_record(entry.name, self.root)
        why = self._why_stale(entry, record) if record else "no record"
        obstacle = self._obstacle(entry)
        if not why:
            return EntryState(entry, "ok", "", seeds, obstacle)
        cut = [f"seed {seed.seed} at step {seed.step:,}" for seed in seeds if seed.step and not seed.done]
        done = [seed for seed in seeds if seed.done]
        if done:
            why += f"; {len(done)} of {len(seeds)} seeds done"
        if cut:
            return EntryState(entry, "cut", f"{', '.join(cut)}; {why}", seeds, obstacle)
        return EntryState(entry, "stale" if record else "missing", why, seeds, obstacle)

    def of_seed(self, entry: Entry, seed: int) -> SeedState:
        """The state of a seed's run; one of other code or other flags counts as none."""
        folder = self.root / entry.run_folder(seed)
        kept = read_origin(folder)
        if kept is None or (kept.command, kept.code) != (
            entry.command(seed),
            self._code(entry.script, entry.launch),
        ):
            return SeedState(seed)
        if (folder / "summary.json").exists():
            return SeedState(seed, done=True)
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            return SeedState(seed)
        step = step_of(checkpoints[-1])
        metrics = folder / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.exists() else []
        seconds = max((row.get("time", 0.0) for row in rows if row["step"] <= step), default=0.0)
        return SeedState(seed, step, seconds / 60)

    def _why_stale(self, entry: Entry, record: dict[str, Any]) -> str:
        """Why a record is not what would be made now; empty where it is."""
        if record["code"] is None:
            return "made by hand, by code that left no fingerprint"
        if record["code"] != self._code(entry.script, entry.launch):
            changed = self._changed(record["commit"], entry.script) if record["commit"] else []
            others = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
            return f"other code{': ' if changed else ''}{', '.join(changed[:2])}{others}"
        if record["command"] != entry.command(record["seeds"][0]):
            return "other flags"
        if record["seeds"] != entry.seeds:
            return f"seeds {_listed(record['seeds'])} instead of {_listed(entry.seeds)}"
        return ""

    def _obstacle(self, entry: Entry) -> str:
        files = entry.data_files(self.data)
        if files and not self.data:
            return f"data missing: give --data DIR or {DATA_VARIABLE}"
        absent = [str(path) for path in files if not path.exists()]
        if absent:
            return f"data missing: {', '.join(absent)}"
        return "needs a GPU" if entry.gpu and not _has_gpu() else ""


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


@functools.cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _origin_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.origin.json")  # beside it: the script moves an earlier run aside


def read_origin(folder: Path) -> Origin | None:
    """What the run in `folder` is made by; None where nothing was noted."""
    path = _origin_path(folder)
    return Origin(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def write_origin(folder: Path, origin: Origin) -> None:
    """Note what the run in `folder` is made by."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(_origin_path(folder), json.dumps(asdict(origin), indent=1) + "\n")
