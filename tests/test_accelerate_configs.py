"""The launch files: loadable, commented, and the CPU ones do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).parents[1] / "accelerate_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
EXPECTED = {  # name: type, processes, machines, precision, on the CPU
    "bf16": (DistributedType.NO, 1, 1, "bf16", False),
    "cpu": (DistributedType.NO, 1, 1, "no", True),
    "cpu_2proc": (DistributedType.MULTI_GPU, 2, 1, "no", True),
    "cpu_bf16": (DistributedType.NO, 1, 1, "bf16", True),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 8, 1, "bf16", False),
    "fsdp": (DistributedType.FSDP, 8, 1, "bf16", False),
    "multi_gpu_bf16": (DistributedType.MULTI_GPU, 8, 1, "bf16", False),
    "multi_node": (DistributedType.MULTI_GPU, 16, 2, "bf16", False),
    "multi_t4": (DistributedType.MULTI_GPU, 2, 1, "fp16", False),
    "t4": (DistributedType.NO, 1, 1, "fp16", False),
}


def merged_arguments(name: str, *flags: str):
    """What `accelerate launch` makes of its defaults, the file and the flags."""
    arguments = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(arguments))[0]


def launch(name: str, script: Path, **environment: str) -> str:
    """Standard output of the script under `accelerate launch` with the named file and no OMP_NUM_THREADS."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, "--config_file", FOLDER / f"{name}.yaml", script],
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_is_expected():
    assert [path.stem for path in FILES] == sorted(EXPECTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_loads_and_merges(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert isinstance(config, ClusterConfig)
    arguments = merged_arguments(path.stem)
    merged = arguments.num_processes, arguments.num_machines, arguments.mixed_precision, arguments.use_cpu
    assert (config.distributed_type, *merged) == EXPECTED[path.stem]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nested_keys_are_known(path):
    """Accelerate copies the keys of `fsdp_config` and the like unchecked: a misspelt one would do nothing."""
    known = {action.dest for action in launch_command_parser()._actions}
    for section in yaml.safe_load(path.read_text()).values():
        if isinstance(section, dict):
            assert set(section) <= known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_is_explained(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# "), "the first line says what the file is for"
    for line in lines:
        assert len(line) <= 110
        assert line.startswith("#") or re.fullmatch(r" *\w+:( [^#]+?)?  # .+", line), line


def test_fsdp_keys_reach_the_plugin(monkeypatch):
    environment = prepare_multi_gpu_env(merged_arguments("fsdp", "--main_process_port", "0"))
    for key, value in environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap == ["EncoderLayer", "DecoderLayer"]
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is False


def test_nodes_get_their_rank_on_the_command_line():
    for rank in (0, 1):
        flags = ["--machine_rank", str(rank), "--main_process_ip", "10.0.0.1"]
        arguments = merged_arguments("multi_node", *flags)
        assert (arguments.machine_rank, arguments.main_process_ip) == (rank, "10.0.0.1")
        assert arguments.main_process_port == 29500
        arguments.main_process_port = 0  # any free one: here another run may hold 29500
        prepare_multi_gpu_env(arguments)
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", rank)
        assert arguments.rdzv_endpoint.startswith("10.0.0.1:")


def test_process_count_can_be_given_on_the_command_line():
    assert merged_arguments("multi_t4", "--num_processes", "4").num_processes == 4


@pytest.mark.slow
def test_cpu_takes_all_physical_cores(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator()\n"
        "print(accelerator.device, accelerator.num_processes, accelerator.mixed_precision,"
        " torch.get_num_threads())\n"
    )
    n_cores = psutil.cpu_count(logical=False)
    assert launch("cpu", script).split() == ["cpu", "1", "no", str(n_cores)]


@pytest.mark.slow
def test_cpu_2proc_runs_two_processes_that_reduce(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True)\n"
        "total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), 'sum')\n"
        "totals = accelerator.gather(total).tolist()\n"  # printed by one rank: lines of two would run together
        "accelerator.print(torch.distributed.get_backend(), accelerator.num_processes, *totals)\n"
        "accelerator.end_training()\n"
    )
    assert launch("cpu_2proc", script).split() == ["gloo", "2", "3.0", "3.0"]
