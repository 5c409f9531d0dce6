import os
from pathlib import Path

import pytest
from accelerate import Accelerator
from torch import nn
from two_processes import on_processes

from training.processes import local_main_process_first, raise_if_replicas_differ


def of_copies(accelerator: Accelerator) -> tuple[str, str, str]:
    """What is raised for equal copies, and for copies of which one has another weight, or buffer."""
    said = []
    for weight, mean in ((0, 0), (0.01, 0), (0, 0.01)):
        model = nn.BatchNorm1d(5)
        model.weight.data += weight * accelerator.process_index
        model.get_buffer("running_mean").add_(mean * accelerator.process_index)
        try:
            raise_if_replicas_differ(accelerator, model)
            said.append("")
        except RuntimeError as error:
            said.append(str(error))
    return tuple(said)


@pytest.mark.training
def test_copies_that_have_run_apart_are_found_by_each_process(tmp_path):
    for equal, *apart in on_processes(2, of_copies, tmp_path):
        assert equal == ""
        assert all("seed_micro_batch(config.seed, step, n_parts)" in said for said in apart)


def of_a_cache(accelerator: Accelerator) -> list[str]:
    """What this process does of what the first does first, and where that fails."""
    done = []
    place = Path(os.environ["ONECYCLE_CACHE"])
    with local_main_process_first(accelerator):
        done.append("found" if place.exists() else "made")
        place.touch()
    try:
        with local_main_process_first(accelerator):
            raise FileNotFoundError("the data")
    except FileNotFoundError:
        done.append("failed")
    accelerator.wait_for_everyone()
    return done


@pytest.mark.training
def test_the_others_follow_the_first_process_where_it_fails_too(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "made"))
    assert on_processes(2, of_a_cache, tmp_path) == [["made", "failed"], ["found", "failed"]]


def test_one_process_has_nothing_to_compare(fresh_accelerate):
    assert of_copies(Accelerator(cpu=True)) == ("", "", "")
