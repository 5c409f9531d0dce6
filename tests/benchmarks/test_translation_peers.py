"""Our trainer beside Eole: what is made of their logs, and a whole turn with a program that logs as Eole does."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.translation_peers import Report, eole_reports, main, our_reports, speed
from data.text.phrasebook import phrasebook_pairs

EOLE_LINE = (
    "[2026-11-28 06:15:{:02},{:03} INFO] Step {}/100000; acc: 3.7; ppl: 5659.99; xent: 8.64; aux: 0.000; "
    "mtp: 0.000; attn_ent: 0.000; lr: 1.00e-04; sents:    3961; bsz: 3212/{}/198; 1228/1379 tok/s;     52 sec;\n"
)
STAND_IN = """#!{python}
import datetime, sys, time, yaml
config = yaml.safe_load(open(sys.argv[3]))
assert sys.argv[1:3] == ["train", "-config"] and config["training"]["compute_dtype"] in ("fp32", "bf16")
vocabulary = {{line.split("\\t")[0] for line in open(config["src_vocab"])}}
for side in ("path_src", "path_tgt"):
    lines = open(config["data"]["corpus"][side]).read().splitlines()
    assert len(lines) > 100 and all(set(line.split()) <= vocabulary for line in lines)
for step in range(10, 1000, 10):
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    print(f"[{{now}} INFO] Step {{step}}/100; bsz: 90/100/9; 1/1 tok/s; 1 sec;", flush=True)
    time.sleep(0.2)
"""


def test_eole_s_speed_is_that_of_its_target_tokens_after_the_first_report(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "[2026-11-28 06:15:00,000 INFO] Start training\n"
        + EOLE_LINE.format(10, 0, 10, 9000)
        + EOLE_LINE.format(12, 500, 20, 300)
        + EOLE_LINE.format(15, 0, 30, 200)
    )
    reports = eole_reports(log)
    assert [report.target_tokens for report in reports] == [90_000, 3_000, 2_000]
    assert speed(reports) == pytest.approx(1_000)


def test_our_speed_is_that_of_the_lines_after_the_first(tmp_path):
    rows = [
        {"step": 0, "time": 1.0, "valid/bleu": 0.0},
        {"step": 10, "time": 4.0, "train/tokens_per_second": 9e9},
        {"step": 20, "time": 6.0, "train/tokens_per_second": 100.0},
        {"step": 30, "time": 7.0, "train/tokens_per_second": 400.0},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert our_reports(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 40, "ti')  # a line that is being written
    reports = our_reports(tmp_path)
    assert reports[0] == Report(4.0, 0.0)
    assert speed(reports) == pytest.approx(600 / 3)


@pytest.fixture
def corpus(tmp_path) -> list[str]:
    """The embedded phrasebook as two files."""
    pairs = phrasebook_pairs()
    paths = [tmp_path / "corpus.en", tmp_path / "corpus.it"]
    for path, side in zip(paths, zip(*pairs, strict=True), strict=True):
        path.write_text("".join(f"{sentence}\n" for sentence in side))
    return [str(path) for path in paths]


def write_program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_both_take_turns_as_programs(tmp_path, corpus, capsys):
    eole = write_program(tmp_path / "eole", STAND_IN.format(python=sys.executable))
    sizes = ["--d_model", "16", "--n_heads", "2", "--n_layers", "1", "--d_ff", "32", "--max_tokens", "512"]
    turns = ["--precisions", "no", "--rounds", "1", "--seconds", "0.5", "--output", str(tmp_path / "out.json")]
    main(["--eole", eole, "--train_files", *corpus, "--vocab_size", "300", *sizes, *turns])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["eole, no"][0] == pytest.approx(5_000, rel=0.2) and found["onecycle, no"][0] > 100
    assert "onecycle, no" in capsys.readouterr().out


def test_a_program_that_fails_is_named_with_what_it_said(tmp_path, corpus, capsys):
    eole = write_program(tmp_path / "eole", "#!/bin/sh\necho no such option\nexit 1\n")
    with pytest.raises(SystemExit) as end:
        main(["--eole", eole, "--train_files", *corpus, "--vocab_size", "300"])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "no such option" in line
