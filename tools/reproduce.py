"""Make the published runs that are missing or were made by other code, and record them.

    python -m tools.reproduce --list --data DIR                # what is stale, and what it would cost
    python -m tools.reproduce --data DIR --hours 3             # all of it, as much as fits into three hours
    python -m tools.reproduce cifar-ultimus unet-mp-tr-bce     # these alone, with the data in $ONECYCLE_DATA
    taskset -c 1 python -m tools.reproduce unet-mp-tr-bce --seeds 1   # beside another one that makes seeds 0 and 2

results/records.yaml lists the runs. They are made one after another, each seed in runs/records/NAME/seed<n> with
its log beside it; when all seeds of a record are done, results/NAME.json and the tables are written, and the
record of older code goes to results/history/. What was cut, by --hours or a signal, is gone on with the next time,
where its code and flags are still the same. A run that fails is left, the next one is made, and the exit code is 1
at the end.

A record is stale where the code that its script imports has changed; other files, comments and docstrings do not
count. With --hours, a run is begun if it is expected to end in what is left of them, or if it takes longer than all
of them: then it is cut at their end, and saved.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tabulate import tabulate
from tyro.conf import Positional

from tools.published.catalogue import DATA_VARIABLE, ROOT, Entry, named, read_catalogue
from tools.published.launched_run import Deadline, LaunchedRun
from tools.published.state import (
    EntryState,
    SeedState,
    States,
    minutes_left,
    read_origin,
    write_origin,
)
from tools.published.tables import write_tables
from tools.record import log_lines, write_record
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.ranges import Range, Seed
from training.run_folder import claim_folder, holds_a_run, move_run_aside, release_folder

Hours = Annotated[float, Range(float, at_least=0, at_most=10**4)]


def to_make(entries: Sequence[Entry], chosen: Sequence[Entry], states: States) -> list[Entry]:
    """Those of the chosen entries whose record does not stand, and those that these read and that are not here."""
    wanted = {entry.name for entry in chosen if states.of(entry).status != "ok"}
    for entry in reversed(entries):  # what an entry reads stands before it
        if entry.name in wanted:
            read = [other for other in entries if other.name in entry.needs]
            wanted |= {other.name for other in read if not _is_here(other, states)}
    return [entry for entry in entries if entry.name in wanted]


def _is_here(entry: Entry, states: States) -> bool:
    """Whether the run of an entry that others read has been made on this machine, by today's code."""
    return states.of_seed(entry, 0).done


def state_table(states: Sequence[EntryState]) -> str:
    """A line for each entry, and what all together would cost."""
    rows = []
    for state in states:
        why = "; ".join(text for text in (state.obstacle, state.why) if text)
        cost = f"{state.minutes:,.1f}" if state.minutes else ""
        rows.append((state.entry.name, state.status, cost, state.entry.hardware, why))
    table = tabulate(rows, headers=("record", "status", "minutes", "on", "why"), colalign=("left", "left", "right"))
    to_do = [state for state in states if state.status != "ok"]
    possible = sum(state.minutes for state in to_do if not state.obstacle)
    barred = [state for state in to_do if state.obstacle]
    total = f"{len(to_do)} of {len(states)} to make, {possible:,.0f} minutes"
    return f"{table}\n{total}" + (f" without {len(barred)} that cannot be made here" if barred else "")


def reproduce(
    entries: Sequence[Entry],
    making: Sequence[Entry],
    states: States,
    deadline: Deadline,
    seeds: Sequence[int] = (),
) -> bool:
    """Make and record the entries `making`, one after another, of each these `seeds` or all.

    Returns whether none has failed.
    """
    failed = []
    for entry in making:
        state = states.of(entry)
        absent = [need.name for need in entries if need.name in entry.needs and not _is_here(need, states)]
        obstacle = state.obstacle or (f"it reads the run of {absent[0]}, which is not there" if absent else "")
        if obstacle:
            print(f"{entry.name}: skipped, {obstacle}", file=sys.stderr, flush=True)
        elif not _make_seeds(state, states, deadline, seeds):
            failed.append(entry.name)
        elif all(states.of_seed(entry, seed).done for seed in entry.seeds):
            print(f"{entry.name}: recorded in {_record(entry, states)}", flush=True)
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return not failed


def _make_seeds(state: EntryState, states: States, deadline: Deadline, chosen: Sequence[int]) -> bool:
    """Run the `chosen` ones of an entry's seeds, or all, as far as there is time. Returns whether none failed."""
    for seed in state.seeds:
        if seed.done or (chosen and seed.seed not in chosen):
            continue
        minutes = minutes_left(state.entry, seed)
        if not deadline.leaves_room_for(minutes):
            print(f"{state.entry.name}, seed {seed.seed}: {minutes:.1f} minutes do not fit in any more", flush=True)
        elif not _make_seed(state.entry, seed, states, deadline):
            return False
    return True


def _make_seed(entry: Entry, seed: SeedState, states: States, deadline: Deadline) -> bool:
    """Run a seed until it ends or the time is up. Returns whether it has not failed."""
    folder = states.root / entry.run_folder(seed.seed)
    log = folder.with_name(f"{folder.name}.log")
    arguments = entry.arguments(seed.seed, states.data)
    if seed.step is None:
        _begin(folder, log)
        write_origin(folder, states.origin(entry, seed.seed))
        how = "begins"
    else:
        arguments += ["--resume", "latest"]
        how = f"goes on from step {seed.step:,}"
    name = f"{entry.name}, seed {seed.seed}"
    print(f"{name}: {how}, about {minutes_left(entry, seed):.1f} minutes, log in {log}", flush=True)
    with LaunchedRun(
        entry.script, arguments, launch=entry.launch, threads=entry.threads, log=log, root=states.root
    ) as run:
        code = run.wait(deadline.seconds_left())
    if code is None:
        print(f"{name}: cut, for the time is up", flush=True)
    elif code:
        said = log_lines(log.read_text("utf-8", errors="replace"))
        last = next((line for line in reversed(said) if line.startswith("error: ")), said[-1] if said else "")
        print(
            f"error: {name} failed: {last.removeprefix('error: ')} (all of it in {log})",
            file=sys.stderr,
            flush=True,
        )
    return not code


def _begin(folder: Path, log: Path) -> None:
    """Make room for a run from its beginning: one of other code is moved aside."""
    claim_folder(folder)
    if holds_a_run(folder):
        move_run_aside(folder)
    release_folder(folder)
    log.unlink(missing_ok=True)


def _record(entry: Entry, states: States) -> Path:
    """Write the record of an entry whose seeds are done, and the tables."""
    folders = [states.root / entry.run_folder(seed) for seed in entry.seeds]
    origins = [origin for folder in folders if (origin := read_origin(folder))]
    names = {states.data: f"${DATA_VARIABLE}"} if states.data else {}
    names |= {f"{states.root}/": "", f"{sys.prefix}/": ""}
    path = write_record(
        entry,
        folders,
        root=states.root,
        logs=[folder.with_name(f"{folder.name}.log") for folder in folders],
        commands=[origin.command for origin in origins],
        commits=[origin.commit for origin in origins],
        code=origins[0].code,
        names=names,
    )
    write_tables(states.root)
    return path.relative_to(states.root)


def main(
    names: Positional[tuple[str, ...]] = (),
    hours: Hours = 0,
    list: bool = False,
    data: PathFlag = "",
    seeds: tuple[Seed, ...] = (),
) -> None:
    """Make the published runs that are missing or were made by other code, and record them.

    Args:
        names: names of records, as results/records.yaml has them; all by default
        hours: stop after so many hours, and save what is running; 0: when all is done
        list: only say what is missing or stale, why, and how many minutes it would take
        data: folder of the data sets, by default what the environment variable ONECYCLE_DATA says
        seeds: make these of each record alone; with the last one that was missing it is written
    """
    try:
        data = data or os.environ.get(DATA_VARIABLE, "")
        states = States(ROOT, str(Path(data).resolve()) if data else "")
        entries = read_catalogue(ROOT)
        chosen = named(entries, names)
        if list:
            print(state_table([states.of(entry) for entry in chosen]))
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        for entry in chosen:
            missing = [seed for seed in seeds if seed not in entry.seeds]
            if missing:
                raise UsageError(f"--seeds {missing[0]}: {entry.name} has {', '.join(map(str, entry.seeds))}")
        if not reproduce(entries, to_make(entries, chosen, states), states, Deadline(hours), seeds):
            sys.exit(1)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # on its way out, the run that is going on is stopped and saves


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
