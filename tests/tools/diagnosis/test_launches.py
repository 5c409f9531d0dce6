import dataclasses
from pathlib import Path

import pytest

from tools.diagnosis.launches import Launch, not_as_asked, suitable, unusable_gpus
from tools.diagnosis.machine import Gpu, Machine
from training.errors import UsageError

CONFIGS = Path(__file__).resolve().parents[3] / "accelerate_configs"
T4 = Gpu("Tesla T4", (7, 5), 15 << 30)
A100 = Gpu("NVIDIA A100", (8, 0), 40 << 30)
LAPTOP = Machine(
    gpus=(),
    driver_shows=(),
    torch_version="2.13.0+cpu",
    cuda_of_torch=None,
    cpu="a CPU",
    cores=4,
    threads_asked=None,
    cpu_multiplies_bf16=False,
    memory=16 << 30,
    memory_available=8 << 30,
)


def with_gpus(*gpus: Gpu) -> Machine:
    names = tuple(gpu.name for gpu in gpus)
    return dataclasses.replace(LAPTOP, gpus=gpus, driver_shows=names, torch_version="2.13.0", cuda_of_torch="13.0")


def launch(name: str) -> Launch:
    return Launch.read(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize(
    ("machine", "name", "flags"),
    [
        (LAPTOP, "cpu", []),
        (dataclasses.replace(LAPTOP, cpu_multiplies_bf16=True), "cpu_bf16", []),
        (with_gpus(T4), "t4", []),
        (with_gpus(A100), "bf16", []),
        (with_gpus(T4, T4), "multi_t4", ["--num_processes", "2"]),
        (with_gpus(A100, A100, A100), "multi_gpu_bf16", ["--num_processes", "3"]),
        (with_gpus(dataclasses.replace(T4, has_kernels=False)), "cpu", []),
    ],
)
def test_a_suitable_file_gives_the_machine_all_that_it_can_use(machine, name, flags):
    assert suitable(machine) == (name, flags)
    if not flags:
        assert not_as_asked(launch(name), machine) == []


@pytest.mark.parametrize(
    ("name", "machine", "says", "mend"),
    [
        ("bf16", with_gpus(T4), "asks for bf16, which Tesla T4 (compute capability 7.5) has not", "t4.yaml"),
        ("t4", LAPTOP, "asks for fp16, which CPUs have not", "cpu.yaml"),
        ("cpu_bf16", LAPTOP, "bf16, which this CPU only emulates", "cpu.yaml"),
        ("multi_t4", with_gpus(T4), "starts 2 processes, but torch sees 1 GPUs", "t4.yaml"),
        ("multi_node", with_gpus(A100, A100), "starts 8 processes, but torch sees 2", "--num_processes 2"),
        ("fsdp", LAPTOP, "shards a model, which on a CPU nothing does", "cpu.yaml"),
    ],
)
def test_what_a_launch_would_not_get_is_said_with_the_mend(name, machine, says, mend):
    (problem,) = not_as_asked(launch(name), machine)
    assert says in problem and problem.endswith(mend)


def test_multi_cpu_starts_one_process(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nmixed_precision: no\nuse_cpu: true\n")
    (problem,) = not_as_asked(Launch.read(file), LAPTOP)
    assert "MULTI_CPU, of which Accelerate starts one process only" in problem


@pytest.mark.parametrize(("name", "threads", "idle"), [("cpu", 1, 3), ("cpu_2proc", 1, 2), ("cpu_2proc", 2, 0)])
def test_threads_that_leave_cores_idle(name, threads, idle):
    problems = not_as_asked(launch(name), dataclasses.replace(LAPTOP, threads_asked=threads))
    said = f"OMP_NUM_THREADS={threads} leaves {idle} of 4 cores idle: unset OMP_NUM_THREADS"
    assert problems == ([said] if idle else [])
    assert not_as_asked(launch("t4"), dataclasses.replace(with_gpus(T4), threads_asked=1)) == []


def test_gpus_that_torch_cannot_use():
    (problem,) = unusable_gpus(dataclasses.replace(LAPTOP, driver_shows=("Tesla T4", "Tesla T4")))
    assert "torch 2.13.0+cpu is a build for CPUs, beside 2 x Tesla T4: pip uninstall -y torch" in problem
    hidden = dataclasses.replace(with_gpus(T4), gpus=())
    assert "cannot use Tesla T4: unset CUDA_VISIBLE_DEVICES" in unusable_gpus(hidden)[0]
    (problem,) = unusable_gpus(with_gpus(Gpu("Tesla P100", (6, 0), 16 << 30, has_kernels=False)))
    assert "no code for Tesla P100 (compute capability 6.0)" in problem
    assert unusable_gpus(LAPTOP) == unusable_gpus(with_gpus(T4)) == []


def test_a_file_that_is_no_launch_file_is_refused(tmp_path):
    for text in ("a: [", "just words"):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(UsageError, match="name"):
            Launch.read(tmp_path / "own.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        Launch.read(tmp_path / "none.yaml")
