"""The edits of docs/editing.md, each applied to a copy of the project and run: alone, by two processes, resumed."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import forked_runs
import pytest
from run_folders import curve
from small_data import small_data

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "editing.md"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "runs", "results", "tests", "__pycache__", ".*_cache", "wandb")
TINY = {
    "train_translation.py": [
        *("--d_model", "16", "--n_heads", "2", "--d_ff", "16"),
        *("--n_encoder_layers", "1", "--n_decoder_layers", "1"),
        *("--max_tokens", "256", "--valid_sentences", "4", "--test_sentences", "4", "--beam_size", "2"),
    ],
    "train_unet.py": ["--width", "8", "--depth", "2", "--image_size", "32", "--batch_size", "4", "--views", "one"],
    "train_cvae.py": [
        *("--image_size", "16", "--width", "16", "--latent_dim", "4"),
        *("--judge", "none", "--iw_samples", "0", "--batch_size", "8"),
    ],
    "train_cifar.py": [
        *("--model", "ultimus", "--optimizer", "adamw", "--lr", "0.003"),
        *("--batch_size", "8", "--views", "one"),
    ],
}


class Edit(NamedTuple):
    title: str
    diff: str
    flags: list[str]  # that show the edit at work, from the line "Try it: `script demo --flag ..`"
    script: str
    logs: list[str]  # names that metrics.jsonl has after the edit, from the line "It logs `name`, `name`."


def edits_of_page(page: str) -> list[Edit]:
    edits = []
    for section in re.split(r"(?m)^## ", page)[1:]:
        title = section.partition("\n")[0].strip()
        for diff in re.findall(r"(?ms)^```diff\n(.*?)^```$", section):
            script, flags = re.search(r"Try it: `(train_\w+\.py) demo ?([^`]*)`", section).groups()
            logged = re.search(r"It logs (.*)\.$", section, re.MULTILINE)
            logs = re.findall(r"`([^`]+)`", logged.group(1)) if logged else []
            edits.append(Edit(title, diff, flags.split(), script, logs))
    return edits


EDITS = edits_of_page(PAGE.read_text(encoding="utf-8"))


def test_the_page_holds_an_edit_for_each_script_and_says_which_files_it_touches():
    assert {edit.script for edit in EDITS} == set(TINY)
    for edit in EDITS:
        touched = re.findall(r"(?m)^\+\+\+ b/(\S+)$", edit.diff)
        assert 1 <= len(touched) <= 2 and edit.script in touched, edit.title


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS, ids=[re.sub(r"\W+", "-", edit.title.lower()) for edit in EDITS])
def test_an_edit_applies_and_runs_alone_by_two_processes_and_resumed(edit, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=NOT_COPIED)
    applied = subprocess.run(["git", "apply", "-"], cwd=project, input=edit.diff, text=True, capture_output=True)
    assert applied.returncode == 0, f"docs/editing.md, {edit.title}: {applied.stderr}"
    data = small_data(edit.script.removeprefix("train_").removesuffix(".py"), tmp_path)
    common = ["demo", *TINY[edit.script], *data, "--tracker", "none", "--log_every", "1", *edit.flags]

    def run(output_dir, *flags, **options) -> Path:
        forked_runs.run(
            edit.script, *common, "--output_dir", output_dir, *flags, cwd=project, check=True, **options
        )
        return output_dir

    alone = run(tmp_path / "alone", "--max_train_steps", "3", figures=True)
    names = set().union(*(json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()))
    assert set(edit.logs) <= names
    together = (
        "--no_final_test",
        "--gradient_accumulation_steps",
        "2",
        "--max_train_steps",
        "4",
        "--checkpointing_steps",
        "2",
        "--checkpoints_total_limit",
        "0",
    )
    whole = run(tmp_path / "whole", *together, config="cpu_2proc")
    half_way = whole / "checkpoints" / "checkpoint-2"
    resumed = run(tmp_path / "resumed", *together, "--resume", half_way, config="cpu_2proc")
    steps = [line for line in curve(whole) if line["step"] > 2]
    assert steps and steps == [line for line in curve(resumed) if line["step"] > 2]
