import json
import shutil

import pytest

import tools.record as record
from tools.published.catalogue import Entry
from training.errors import UsageError

FIELDS = {
    "name": "small",
    "title": "a small run",
    "script": "train_translation.py",
    "recipe": "demo",
    "launch": "cpu",
    "seeds": [3],
    "minutes": 2,
    "hardware": "two cores",
    "chosen_on": "validation",
}
ENTRY = Entry(**FIELDS)


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    summary = {
        "test/bleu": 31.25,
        "test/chrf": 55.0,
        "train_seconds": 90.0,
        "device": "CPU (2 threads)",
        "mixed_precision": "bf16",
        "command": "train_translation.py demo --lr 1",
        "git_commit": "a" * 40,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.json").write_text(json.dumps({"seed": 3, "recipe": "demo"}))
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    return run


def test_a_record_says_how_and_on_what(run, tmp_path):
    log = tmp_path / "log"
    log.write_text("reads /home/me/data/x\n 10%|█ | 1/10\r 20%|██ | 2/10\rstep 5: BLEU 3\nends\n")
    path = record.write_record(
        ENTRY, [run], root=tmp_path, note="alone", logs=[log], code="f00", names={"/home/me/data": "$DATA"}
    )
    written = json.loads(path.read_text())
    assert written["command"] == (
        "accelerate launch --config_file accelerate_configs/cpu.yaml train_translation.py demo --lr 1"
    )
    assert written["seeds"] == [3] and written["numbers"]["test/bleu"] == 31.25
    assert "cores" in written["hardware"] and written["chosen_on"] == "validation"
    assert written["note"] == "alone" and written["code"] == "f00" and written["log"] == "small.log"
    assert (tmp_path / "results" / "small.log").read_text() == "reads $DATA/x\nstep 5: BLEU 3\nends\n"


def test_the_record_of_another_commit_is_kept(run, tmp_path):
    log = tmp_path / "log"
    log.write_text("first\n")
    record.write_record(ENTRY, [run], root=tmp_path, logs=[log])
    record.write_record(ENTRY, [run], root=tmp_path, logs=[log])
    history = tmp_path / "results" / "history"
    assert not history.exists()
    record.write_record(ENTRY, [run], root=tmp_path, commits=["b" * 40])
    kept = sorted(path.name for path in history.iterdir())
    assert kept == [f"small-aaaaaaaaaa.{ending}" for ending in ("json", "log", "metrics.jsonl")]
    written = json.loads((tmp_path / "results" / "small.json").read_text())
    assert written["commit"] == "b" * 40 and written["log"] is None


def test_what_the_launcher_says_of_a_cut_run_is_no_part_of_its_log():
    traceback = (
        'Traceback (most recent call last):\n  File "x", line 1\n    main()\nsubprocess.CalledProcessError: 143\n'
    )
    assert record.log_lines(f"step 1\n{traceback}step 2\n") == ["step 1", "step 2"]
    own = "Traceback (most recent call last):\n  File\nValueError: 3"
    assert record.log_lines(own) == own.splitlines()


def test_seeds_are_averaged_with_their_standard_deviation(run, tmp_path):
    runs = []
    for seed, accuracy in ((3, 0.94), (4, 0.95), (5, 0.93)):
        runs.append(tmp_path / f"seed{seed}")
        shutil.copytree(run, runs[-1])
        (runs[-1] / "config.json").write_text(json.dumps({"seed": seed, "recipe": "demo"}))
        summary = json.loads((run / "summary.json").read_text()) | {
            "test/accuracy": accuracy,
            "train_seconds": seed,
        }
        (runs[-1] / "summary.json").write_text(json.dumps(summary))
    commands = ["first", "second", "third"]
    written = json.loads(record.write_record(ENTRY, runs, root=tmp_path, commands=commands).read_text())
    assert written["numbers"]["test/accuracy"] == pytest.approx(0.94) and written["numbers"]["train_seconds"] == 4
    assert written["std"]["test/accuracy"] == pytest.approx(0.01) and written["seeds"] == [3, 4, 5]
    assert [r["test/accuracy"] for r in written["runs"]] == [0.94, 0.95, 0.93]
    assert [r["command"] for r in written["runs"]] == commands and written["command"] == "first"
    curves = (tmp_path / "results" / "small.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in curves] == [{"seed": seed, "step": 1} for seed in (3, 4, 5)]

    (runs[1] / "config.json").write_text(json.dumps({"seed": 4, "recipe": "other"}))
    with pytest.raises(UsageError, match="differ in recipe"):
        record.write_record(ENTRY, runs, root=tmp_path)


def test_an_unfinished_run_or_one_of_another_recipe_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="no run of train_cifar"):
        record.write_record(Entry(**FIELDS | {"script": "train_cifar.py"}), [run], root=tmp_path)
    (run / "summary.json").unlink()
    with pytest.raises(UsageError, match="has no summary"):
        record.write_record(ENTRY, [run], root=tmp_path)
    assert not (tmp_path / "results").exists()
