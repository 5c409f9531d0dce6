import json
import shutil

import pytest

import tools.record as record
from training.errors import UsageError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
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


def test_a_record_says_how_and_on_what_and_the_table_shows_it(run, tmp_path):
    log = tmp_path / "log"
    log.write_text("begins\n 10%|█ | 1/10\r 20%|██ | 2/10\rstep 5: BLEU 3\nends\n")
    path = record.write_record([run], "demo", "the demo", [str(log)], "accelerate launch")
    written = json.loads(path.read_text())
    assert written["command"] == "accelerate launch train_translation.py demo --lr 1"
    assert written["seed"] == 3 and written["numbers"]["test/bleu"] == 31.25 and "cores" in written["hardware"]
    assert (tmp_path / "results" / "demo.log").read_text() == "begins\nstep 5: BLEU 3\nends\n"
    (row,) = record.results_table().splitlines()[2:]
    assert "[the demo](results/demo.json)" in row and "BLEU 31.2, chrF 55.0" in row and "1.5 min" in row
    assert "`aaaaaaaaaa`" in row and "`train_translation.py demo`" in row


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
    written = json.loads(record.write_record(runs, "seeds", "three", [], "").read_text())
    assert written["numbers"]["test/accuracy"] == pytest.approx(0.94) and written["numbers"]["train_seconds"] == 4
    assert written["std"]["test/accuracy"] == pytest.approx(0.01) and written["seeds"] == [3, 4, 5]
    assert [r["test/accuracy"] for r in written["runs"]] == [0.94, 0.95, 0.93]
    curves = (tmp_path / "results" / "seeds.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in curves] == [{"seed": seed, "step": 1} for seed in (3, 4, 5)]
    assert "accuracy 94.00 ± 1.00 % (n = 3)" in record.results_table() and "| 4.0 s |" in record.results_table()

    (runs[1] / "config.json").write_text(json.dumps({"seed": 4, "recipe": "other"}))
    with pytest.raises(UsageError, match="differ in recipe"):
        record.write_record(runs, "seeds", "three", [], "")


def test_an_unfinished_run_or_a_readme_without_markers_is_refused(run):
    (run / "summary.json").unlink()
    with pytest.raises(UsageError, match="has no summary"):
        record.write_record([run], "demo", "", [], "")
    with pytest.raises(UsageError, match="README"):
        record.readme_with_table("no markers")


def test_the_readme_holds_the_table_of_the_records():
    readme = record.README.read_text(encoding="utf-8")
    assert record.readme_with_table(readme) == readme, "run `python -m tools.record --readme`"


def test_the_readme_quotes_the_recorded_speed():
    measured = (record.RESULTS / "translation-speed.txt").read_text(encoding="utf-8")
    assert measured in record.README.read_text(encoding="utf-8")
