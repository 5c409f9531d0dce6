import json

import pytest

from tools.published.catalogue import ROOT, read_catalogue
from tools.published.tables import FIELDS, read_record, readme_with_table, results_page, task_table
from training.errors import UsageError

CATALOGUE = """
records:
- name: small
  title: a small run
  script: train_cifar.py
  recipe: demo
  launch: cpu
  seeds: [0, 1]
  minutes: 2
  hardware: two cores
  chosen_on: validation
  task: classify
  score: test/accuracy
  best_elsewhere: {says: 99 %, source: a paper}
- name: missing
  title: not made yet
  script: train_cifar.py
  recipe: resnet
  launch: cpu
  seeds: [0]
  minutes: 2
  hardware: two cores
  chosen_on: validation
"""
RECORD = {
    **dict.fromkeys(FIELDS),
    "note": "beside tests",
    "chosen_on": "validation",
    "commit": f"{'a' * 40}-dirty",
    "hardware": "a(R) chip(TM) CPU",
    "seeds": [0, 1],
    "numbers": {
        "test/accuracy": 0.95,
        "test/loss": 1.0,
        "train_seconds": 90.0,
        "total_seconds": 99.0,
        "n_parameters": 5,
        "mixed_precision": "bf16",
        "device": "CPU",
        "num_processes": 1,
    },
    "std": {"test/accuracy": 0.0123},
}


@pytest.fixture
def root(tmp_path):
    for name in ("train_cifar.py", "accelerate_configs/cpu.yaml", "results/notes/train_cifar.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "results" / "records.yaml").write_text(CATALOGUE)
    (tmp_path / "results" / "small.json").write_text(json.dumps(RECORD))
    return tmp_path


def test_readme_has_a_row_for_a_task(root):
    (row,) = task_table(root).splitlines()[2:]
    link = "[`demo`](results/small.json)"
    assert row == f"| classify | {link} | 95.00 ± 1.23 % | 1.5 min | a chip | – | 99 % |"
    with pytest.raises(UsageError, match="README"):
        readme_with_table("no markers", root)


def test_the_page_has_every_record_with_its_notes(root):
    (root / "results" / "notes" / "train_cifar.md").write_text("How fast:\n\n```\n{{speed.txt}}\n```\n")
    (root / "results" / "speed.txt").write_text("command\n\n9 images/s\nnothing else\n\nprofile\n")
    page = results_page(root)
    links = "[`demo`](small.json) `aaaaaaa`* [curve](small.metrics.jsonl)"
    assert f"| a small run | 95.00 ± 1.23 | 2 | 1.5 min | a chip, bf16 | validation | {links} |" in page
    assert "not made yet" not in page
    assert "- a small run: beside tests.\n" in page and "best elsewhere: 99 %, a paper." in page
    assert page.endswith("How fast:\n\n```\n9 images/s\nnothing else\n```\n")


def test_the_hardware_of_a_run_that_took_fewer_cores_says_how_many(root):
    numbers = RECORD["numbers"] | {"device": "CPU (1 threads)"}
    record = RECORD | {"hardware": "a(R) chip(TM) CPU, 4 cores", "numbers": numbers}
    (root / "results" / "small.json").write_text(json.dumps(record))
    assert "| a chip, 1 of 4 cores, bf16 |" in results_page(root)
    numbers["device"] = "CPU (4 threads)"
    (root / "results" / "small.json").write_text(json.dumps(record))
    assert "| a chip, 4 cores, bf16 |" in results_page(root)


def test_a_record_that_lacks_a_field_is_refused(root):
    record = {**RECORD, "numbers": {**RECORD["numbers"]}}
    del record["chosen_on"], record["numbers"]["device"]
    (root / "results" / "small.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"results/small.json lacks chosen_on, numbers.device"):
        results_page(root)


# --- what is published


def test_the_pages_hold_the_tables_of_the_records():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_with_table(readme) == readme, "run `make results`"
    assert results_page() == (ROOT / "results" / "README.md").read_text(encoding="utf-8"), "run `make results`"


def test_every_record_has_every_field_and_an_entry():
    entries = {entry.name: entry for entry in read_catalogue()}
    recorded = {path.name.removesuffix(".metrics.jsonl") for path in (ROOT / "results").glob("*.metrics.jsonl")}
    assert recorded <= set(entries)
    for name in recorded:
        record, entry = read_record(name), entries[name]
        assert set(record) == set(FIELDS), name
        assert (record["name"], record["script"], record["recipe"]) == (name, entry.script, entry.recipe)
        assert record["log"] is None or (ROOT / "results" / record["log"]).exists(), name
        assert len(record["runs"]) == (len(record["seeds"]) if len(record["seeds"]) > 1 else 0), name
        assert not entry.score or entry.score in record["numbers"], name
