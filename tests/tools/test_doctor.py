"""What tools.doctor says of a machine, and exit code 2 with the mend where something is in the way."""

import dataclasses
import shutil

import pytest

import tools.doctor
from tools.diagnosis.estimates import Estimate, Rate
from tools.diagnosis.machine import Gpu, Machine, free_bytes, this_machine, unfit_packages
from tools.doctor import estimate_table, main

T4 = Gpu("Tesla T4", (7, 5), 15 << 30)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that has the tool look at a machine that differs from this one so; nothing is measured."""
    here = dataclasses.replace(
        this_machine(), threads_asked=None, gpus=(), driver_shows=(), cpu_multiplies_bf16=True
    )

    def put(**differs) -> Machine:
        seen = dataclasses.replace(here, **differs)
        monkeypatch.setattr(tools.doctor, "this_machine", lambda: seen)
        monkeypatch.setattr(tools.doctor, "rates_here", lambda *_: [Rate("this", 2, "bf16", 1.0)])
        return seen

    put()
    return put


def run(capsys, *arguments, **options) -> tuple[int, str, str]:
    try:
        main(*arguments, **options)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_it_says_what_is_here_how_to_launch_and_what_recipes_take(machine, capsys):
    machine()
    code, out, err = run(capsys)
    assert code == 0 and err == ""
    for heading in ("GPU", "CPU", "memory", "runs", "cache", "versions", "--compile", "W&B"):
        assert f"\n{heading} " in f"\n{out}"
    assert "W&B        offline, as WANDB_MODE says" in out
    assert "accelerate launch -q --config_file accelerate_configs/cpu_bf16.yaml train_translation.py demo" in out
    assert "train_cifar        speedrun" in out
    assert out.endswith("Nothing is in the way of accelerate_configs/cpu_bf16.yaml.\n")


def test_a_cpu_build_beside_a_gpu_and_bf16_asked_of_a_t4_end_with_2_and_the_mend(machine, capsys):
    machine(driver_shows=("Tesla T4",), cuda_of_torch=None)
    code, out, err = run(capsys)
    assert code == 2 and "is a build for CPUs, beside Tesla T4: pip uninstall -y torch" in err
    assert "Nothing is in the way" not in out
    machine(gpus=(T4,), driver_shows=("Tesla T4",), cuda_of_torch="13.0")
    code, out, err = run(capsys, "accelerate_configs/bf16.yaml")
    assert code == 2
    assert err == (
        "error: accelerate_configs/bf16.yaml asks for bf16, which Tesla T4 (compute capability 7.5) has not: "
        "launch with --config_file accelerate_configs/t4.yaml\n"
    )
    assert run(capsys)[0] == 0  # t4.yaml suits it


def test_a_full_disk_ends_with_2(machine, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20 << 20))
    code, _, err = run(capsys, output_dir=str(tmp_path / "runs"))
    assert code == 2
    runs, cache = err.splitlines()
    assert runs == f"error: {tmp_path}/runs has only 20 MiB left on its disk: name another --output_dir for runs"
    assert cache.startswith(f"error: {tmp_path}/cache has only 20 MiB left on its disk: empty it, or set ONECYCLE")


def test_packages_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "requirements.txt").write_text("# ranges\ntorch>=99  # none\nno-such-package>=1\nnumpy>=1\n")
    torch_line, missing = unfit_packages(tmp_path)
    assert torch_line.startswith("torch is of version ") and torch_line.endswith("but torch>=99 is needed")
    assert missing == "no-such-package is not installed"
    assert unfit_packages() == []


def test_a_folder_that_is_yet_to_be_made_has_the_disk_of_its_parent(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_a_recipe_that_wants_more_memory_than_there_is_is_marked():
    estimate = Estimate("train_cifar.py", "resnet", "a server, bf16", 7200.0, None, 4096.0)
    assert "4.0 GiB (too much)" in estimate_table([estimate], 2 << 30)
    row = estimate_table([dataclasses.replace(estimate, seconds_here=120.0)], 8 << 30).splitlines()[-1]
    assert row.split("  ")[0] == "train_cifar" and " 2 min " in row and " 2.0 h " in row
