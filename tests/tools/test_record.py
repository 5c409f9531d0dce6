import json

import pytest

import tools.record as record
from training.errors import UsageError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    run = tmp_path / "run"
    run.mkdir()
    summary = {"test/bleu": 31.25, "test/chrf": 55.0, "train_seconds": 90.0, "device": "CPU (2 threads)",
               "mixed_precision": "bf16", "command": "train_translation.py demo --lr 1",
               "git_commit": "a" * 40}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.json").write_text(json.dumps({"seed": 3, "recipe": "demo"}))
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    return run


def test_a_record_says_how_and_on_what_and_the_table_shows_it(run, tmp_path):
    log = tmp_path / "log"
    log.write_text("begins\n 10%|█ | 1/10\r 20%|██ | 2/10\rstep 5: BLEU 3\nends\n")
    path = record.write_record(run, "demo", "the demo", str(log), "accelerate launch")
    written = json.loads(path.read_text())
    assert written["command"] == "accelerate launch train_translation.py demo --lr 1"
    assert written["seed"] == 3 and written["numbers"]["test/bleu"] == 31.25 and "cores" in written["hardware"]
    assert (tmp_path / "results" / "demo.log").read_text() == "begins\nstep 5: BLEU 3\nends\n"
    (row,) = record.results_table().splitlines()[2:]
    assert "[the demo](results/demo.json)" in row and "BLEU 31.2, chrF 55.0" in row and "1.5 min" in row
    assert "`aaaaaaaaaa`" in row and "`train_translation.py demo`" in row


def test_an_unfinished_run_or_a_readme_without_markers_is_refused(run):
    (run / "summary.json").unlink()
    with pytest.raises(UsageError, match="has no summary"):
        record.write_record(run, "demo", "", "", "")
    with pytest.raises(UsageError, match="README"):
        record.readme_with_table("no markers")


def test_the_readme_holds_the_table_of_the_records():
    readme = record.README.read_text(encoding="utf-8")
    assert record.readme_with_table(readme) == readme, "run `python -m tools.record --readme`"


def test_the_readme_quotes_the_recorded_speed():
    measured = (record.RESULTS / "translation-speed.txt").read_text(encoding="utf-8")
    assert measured in record.README.read_text(encoding="utf-8")
