import json
import time

import pytest
import yaml

import tools.reproduce
from tools.published.catalogue import ROOT, read_catalogue
from tools.published.launched_run import Deadline
from tools.published.state import Origin, States, write_origin
from tools.published.tables import BEGIN, END, FIELDS, NUMBERS
from tools.reproduce import reproduce, state_table, to_make
from training.cli import call_with_flags
from training.metrics import read_metrics

DATA = "/no data"
SMALL = {
    "name": "small",
    "title": "a few updates",
    "script": "train_cifar.py",
    "recipe": "demo",
    "launch": "cpu",
    "seeds": [0],
    "minutes": 2,
    "hardware": "two cores",
    "chosen_on": "validation",
    "task": "classify",
    "score": "test/accuracy",
}


@pytest.fixture
def root(tmp_path):
    """A repository with this one's code, and with records, runs and a README of its own."""
    for name in ("data", "models", "training", "figures", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "train_cifar.py").write_text((ROOT / "train_cifar.py").read_text())
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    return tmp_path


def write_catalogue(root, *records):
    records = [{key: value for key, value in record.items() if value is not None} for record in records]
    (root / "results" / "records.yaml").write_text(yaml.safe_dump({"records": records}))
    return read_catalogue(root)


def write_finished_seed(root, states, entry, seed):
    folder = root / entry.run_folder(seed)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    write_origin(folder, states.origin(entry, seed))


def write_record(root, states, entry, **changes):
    origin = states.origin(entry, entry.seeds[0])
    record = {
        **dict.fromkeys(FIELDS),
        "numbers": dict.fromkeys(NUMBERS, 1.0),
        "seeds": entry.seeds,
        "command": origin.command,
        "code": origin.code,
        "commit": None,
    }
    (root / "results" / f"{entry.name}.json").write_text(json.dumps(record | changes))


def test_a_record_stands_until_code_flags_or_seeds_change(root):
    (entry,) = write_catalogue(root, SMALL)
    states = States(root, DATA)
    assert (states.of(entry).status, states.of(entry).minutes) == ("missing", 2)
    write_record(root, states, entry)
    assert (states.of(entry).status, states.of(entry).minutes) == ("ok", 0) and to_make(
        [entry], [entry], states
    ) == []
    write_record(root, states, entry, code=None)
    assert states.of(entry).why == "made by hand, by code that left no fingerprint"

    write_record(root, states, entry)
    (other,) = write_catalogue(root, SMALL | {"flags": "--epochs 9"})
    assert (states.of(other).status, states.of(other).why) == ("stale", "other flags")
    (other,) = write_catalogue(root, SMALL | {"seeds": [0, 1, 2]})
    assert states.of(other).why == "seeds 0 instead of 0, 1, 2" and states.of(other).minutes == 6

    script = root / "train_cifar.py"
    script.write_text(f"{script.read_text()}\n# a comment\n")
    assert States(root, DATA).of(entry).status == "ok"
    script.write_text(f"{script.read_text()}\nMORE = 1\n")
    assert (States(root, DATA).of(entry).status, States(root, DATA).of(entry).why) == ("stale", "other code")


def test_seeds_that_are_done_or_cut_cost_less(root):
    (entry,) = write_catalogue(root, SMALL | {"seeds": [0, 1, 2], "minutes": 10})
    states = States(root, DATA)
    write_finished_seed(root, states, entry, 0)
    cut = root / entry.run_folder(1)
    (cut / "checkpoints" / "checkpoint-1200").mkdir(parents=True)
    (cut / "metrics.jsonl").write_text('{"step": 1200, "time": 240.0}\n{"step": 1300, "time": 270.0}\n')
    write_origin(cut, states.origin(entry, 1))
    state = states.of(entry)
    assert (state.status, state.minutes) == ("cut", 16)
    assert state.why == "seed 1 at step 1,200; no record; 1 of 3 seeds done"
    write_origin(cut, Origin(entry.command(1), "other code", None))
    assert (states.of(entry).status, states.of(entry).minutes) == ("missing", 20)


def test_what_a_run_reads_is_made_before_it(root, capsys):
    judge = SMALL | {"name": "judge", "task": None, "score": None}
    entries = write_catalogue(root, judge, SMALL | {"flags": "--data_dir {data}/x --data_dir {run:judge}"})
    states = States(root, DATA)
    assert [entry.name for entry in to_make(entries, entries[1:], states)] == ["judge", "small"]
    write_record(root, states, entries[0])  # made on another machine, so that its run is not here
    assert [entry.name for entry in to_make(entries, entries, states)] == ["judge", "small"]
    write_finished_seed(root, states, entries[0], 0)
    assert [entry.name for entry in to_make(entries, entries, states)] == ["small"]

    table = state_table([states.of(entry) for entry in entries])
    assert "data missing: /no data/x; no record" in table
    assert table.endswith("1 of 2 to make, 0 minutes without 1 that cannot be made here")
    assert reproduce(entries, entries[1:], states, Deadline(0))
    assert capsys.readouterr().err == "small: skipped, data missing: /no data/x\n"
    assert States(root, "").of(entries[1]).obstacle == "data missing: give --data DIR or ONECYCLE_DATA"


def test_the_list_and_wrong_names_on_the_command_line(root, monkeypatch, capsys):
    write_catalogue(root, SMALL | {"flags": "--data_dir {data}/x"})
    monkeypatch.setattr(tools.reproduce, "ROOT", root)
    monkeypatch.setenv("ONECYCLE_DATA", str(root / "sets"))
    call_with_flags(tools.reproduce.main, ["--list"])
    header, _, row, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["record", "status", "minutes", "on", "why"]
    assert row.split()[:3] == ["small", "missing", "2"] and f"data missing: {root}/sets/x" in row
    assert total == "1 of 1 to make, 0 minutes without 1 that cannot be made here"
    with pytest.raises(SystemExit) as end:
        call_with_flags(tools.reproduce.main, ["large", "--list"])
    assert end.value.code == 2 and "has no large; it has small" in capsys.readouterr().err


def test_time_is_for_what_fits_in_and_for_pieces_of_what_never_does():
    deadline = Deadline(1)
    assert deadline.leaves_room_for(59) and deadline.leaves_room_for(61) and Deadline(0).leaves_room_for(1e6)
    deadline._ends_at = time.monotonic() + 600
    assert deadline.leaves_room_for(9) and not deadline.leaves_room_for(11) and deadline.leaves_room_for(61)
    deadline._ends_at = time.monotonic()
    assert not deadline.leaves_room_for(0) and deadline.seconds_left() == 0 and Deadline(0).seconds_left() is None


class WhenTraining(Deadline):
    """Its time is up as soon as a run has logged an update."""

    def __init__(self, metrics):
        super().__init__(1)
        self._metrics = metrics

    def seconds_left(self):
        while not (self._metrics.exists() and self._metrics.stat().st_size):
            assert self.minutes_left() > 50, "it does not begin"
            time.sleep(0.05)
        return 0.0


def test_seeds_that_were_asked_for_are_made_alone(root, monkeypatch, capsys):
    (entry,) = write_catalogue(root, SMALL | {"seeds": [0, 1, 2]})
    states, made, recorded = States(root, DATA), [], []

    def make(entry, seed, states, deadline):
        made.append(seed.seed)
        write_finished_seed(root, states, entry, seed.seed)
        return True

    monkeypatch.setattr(tools.reproduce, "_make_seed", make)
    monkeypatch.setattr(tools.reproduce, "_record", lambda entry, states: recorded.append(list(made)) or "there")
    assert reproduce([entry], [entry], states, Deadline(0), [1]) and made == [1] and not recorded
    assert reproduce([entry], [entry], states, Deadline(0), [2, 0])
    assert made == [1, 0, 2] and recorded == [[1, 0, 2]]
    monkeypatch.setattr(tools.reproduce, "ROOT", root)
    monkeypatch.setattr("sys.argv", ["reproduce", "small", "--seeds", "7"])
    with pytest.raises(SystemExit) as end:
        call_with_flags(tools.reproduce.main)
    assert end.value.code == 2 and "--seeds 7: small has 0, 1, 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.training
def test_a_run_is_cut_goes_on_and_is_recorded_beside_one_that_fails(root, capsys):
    broken = SMALL | {"name": "broken", "script": "train_broken.py", "task": None, "score": None}
    (root / "train_broken.py").write_text("import sys\nprint('error: no picture')\nsys.exit(2)\n")
    flags = "--model speednet --speednet_widths 2 2 2 --batch_size 2 --max_train_steps 300 --log_every 1"
    entries = write_catalogue(root, broken, SMALL | {"flags": flags})
    small = entries[1]
    states = States(root, DATA)
    assert reproduce(entries, [small], states, WhenTraining(root / small.run_folder(0) / "metrics.jsonl"))
    assert "small, seed 0: cut, for the time is up" in capsys.readouterr().out
    state = states.of(small)
    assert state.status == "cut" and 0 < state.seeds[0].step < 300 and state.why.startswith("seed 0 at step ")

    assert not reproduce(entries, to_make(entries, entries, states), states, Deadline(0))
    said = capsys.readouterr()
    assert "error: broken, seed 0 failed: no picture (all of it in " in said.err
    assert said.err.endswith("error: failed: broken\n")
    assert f"small, seed 0: goes on from step {state.seeds[0].step:,}" in said.out
    assert said.out.endswith("small: recorded in results/small.json\n")
    record = json.loads((root / "results" / "small.json").read_text())
    assert record["command"] == small.command(0) and record["chosen_on"] == "validation" and record["log"]
    curve = read_metrics(root / "results" / "small.metrics.jsonl")
    assert (curve[0]["step"], curve[-1]["step"]) == (1, 300)
    assert str(root) not in (root / "results" / "small.log").read_text()
    assert "| classify | [`demo`](results/small.json) |" in (root / "README.md").read_text()
    assert states.of(small).status == "ok" and "small.json" in (root / "results" / "README.md").read_text()
