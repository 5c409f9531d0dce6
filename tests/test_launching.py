"""Every script under every way to launch it that a machine without GPUs has.

Where the launcher itself is not what is asked, its processes are forked with the environment that it gives them.
"""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import forked_runs
import psutil
import pytest
import torch
from offline_runs import OfflineRun
from run_folders import curve, final_weights, summary
from small_data import small_data

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parent.parent
SMALL = {  # a model and data that cost little, and four updates
    "cifar": "--model ultimus --optimizer sgd --bias_lr_factor 1 --head_lr_factor 1 --batch_size 16",
    "cvae": "--image_size 16 --latent_dim 4 --width 16 --iw_samples 1 --judge none --batch_size 8",
    "unet": "--width 8 --depth 2 --image_size 32 --norm none --batch_size 4",
    "translation": (
        "--d_model 16 --n_heads 2 --n_encoder_layers 1 --n_decoder_layers 1 --d_ff 32 --dropout 0 --vocab_size 300 "
        "--valid_sentences 2 --test_sentences 20 --beam_size 1 --eval_max_len 8 --max_tokens 128"
    ),
}


@pytest.fixture(params=SMALL)
def script(request) -> str:
    return request.param


def command(script: str, output_dir: Path, *flags, processes: int = 1) -> list[str]:
    """A small demo in updates of two parts: of one process that accumulates, or one of each of two."""
    parts = ["--gradient_accumulation_steps", 2 // processes]
    common = [
        "--no_final_test",
        "--max_train_steps",
        4,
        "--checkpointing_steps",
        2,
        "--checkpoints_total_limit",
        0,
        "--log_every",
        1,
    ]
    data = small_data(script, output_dir.parent)
    words = [f"train_{script}.py", "demo", *SMALL[script].split(), *data, *parts, *common]
    return list(map(str, [*words, "--tracker", "none", "--output_dir", output_dir, *flags]))


def assert_same_weights(run: Path, other: Path, tolerance: float) -> None:
    expected = final_weights(other)
    for name, tensor in final_weights(run).items():
        torch.testing.assert_close(tensor, expected[name], atol=tolerance, rtol=0, msg=f"{run.name}: {name}")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def of_torchrun_on_two_machines() -> list[dict[str, str]]:
    """What `torchrun --nnodes 2` adds for its only process on each machine: nothing of Accelerate's."""
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [{**meeting, "RANK": str(rank), "LOCAL_RANK": "0", "GROUP_RANK": str(rank)} for rank in range(2)]


@pytest.mark.long
@pytest.mark.slow
def test_a_script_trains_the_same_however_it_is_launched(script, tmp_path):
    """And the run of two processes is one at W&B, whose second half one process makes as well."""
    whole, two, machines = (tmp_path / name for name in ("whole", "two", "machines"))
    forked_runs.run(*command(script, whole), config="cpu", check=True)
    of_two = command(script, two, "--tracker", "wandb", processes=2)
    done = forked_runs.run(*of_two, config="cpu_2proc", check=True)
    assert "Warning" not in done.stderr
    torchrun = of_torchrun_on_two_machines()
    forked_runs.run(*command(script, machines, processes=2), ranks=torchrun, check=True)
    assert [summary(run)["num_processes"] for run in (whole, two, machines)] == [1, 2, 2]
    assert_same_weights(two, whole, 1e-5)
    assert_same_weights(machines, two, 0)
    assert OfflineRun(two).run.job_type == "demo"  # which wants one run, not one a process

    resumed = tmp_path / "resumed"
    half = two / "checkpoints" / "checkpoint-2"
    forked_runs.run(*command(script, resumed, "--resume", half), config="cpu", check=True)
    assert_same_weights(resumed, whole, 1e-5)

    bf16 = tmp_path / "bf16"
    forked_runs.run(*command(script, bf16), config="cpu_bf16", check=True)
    assert summary(bf16)["mixed_precision"] == "bf16"
    assert_same_weights(bf16, whole, 5e-2)


def start(words, **environment: str) -> subprocess.Popen:
    """A command in earnest, in the project's folder, where no GPU is seen."""
    return subprocess.Popen(
        list(map(str, words)),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launcher(*words, **environment: str) -> subprocess.Popen:
    """A launcher in earnest: `accelerate.commands.launch` or `torch.distributed.run`, with what it is told."""
    return start([sys.executable, "-m", *words], **environment)


def printed_by(*launchers: subprocess.Popen) -> str:
    """What they print until all have ended, as they shall with exit code 0."""
    printed = ""
    try:
        for each in launchers:
            out, _ = each.communicate(timeout=200)
            assert each.returncode == 0, out
            printed += out
    finally:
        for each in launchers:
            each.kill()  # its scripts notice
    return printed


SBATCH = ROOT / "accelerate_configs" / "multi_node.sbatch"
# Slurm's programs, of a job of two machines that are this one.
SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""
SCONTROL = """#!/bin/bash
[[ "$1 $2 $3" == "show hostnames $SLURM_JOB_NODELIST" ]] || exit 1
echo 127.0.0.1
sleep 0.2
echo 127.0.0.2
"""


def slurm_job(folder: Path, *words) -> subprocess.Popen:
    """The job of multi_node.sbatch with these words, on two machines with one "GPU" each."""
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    nodes = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    job = {"SLURM_JOB_ID": str(random.randrange(10**6)), "SLURM_SUBMIT_DIR": str(ROOT)}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return start(["bash", SBATCH, *words], **nodes, **job, PATH=path)


def test_the_slurm_job_is_bash_and_its_options_come_before_its_commands():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    lines = SBATCH.read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert options and max(options) < first_command  # Slurm reads no further
    assert lines[options[0] - 1].startswith("# ") and all(len(line) <= 116 for line in lines)


@pytest.mark.slow
def test_slurm_joins_two_machines_and_torchrun_two_processes(tmp_path):
    """The job's machines are two launchers on this host, each of which takes the rank that srun gives it."""
    train = command("cifar", tmp_path / "machines", processes=2)
    printed_by(slurm_job(tmp_path / "slurm", *train))
    train = command("cifar", tmp_path / "torchrun", processes=2)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", 2, *train]
    printed_by(launcher(*torchrun, ACCELERATE_MIXED_PRECISION="bf16"))  # multi_node.yaml's
    assert [summary(tmp_path / run)["num_processes"] for run in ("machines", "torchrun")] == [2, 2]
    assert_same_weights(tmp_path / "machines", tmp_path / "torchrun", 0)


@pytest.mark.slow
def test_a_process_killed_at_any_update_is_restarted_and_ends_at_the_weights_of_an_undisturbed_run(tmp_path):
    """To the bit. Its launcher starts both anew, which go on from the newest checkpoint."""
    steps = ("--max_train_steps", 40, "--checkpointing_steps", 3)
    undisturbed = forked_runs.start(*command("cifar", tmp_path / "whole", *steps, processes=2), config="cpu_2proc")
    _, err = undisturbed.communicate()
    assert undisturbed.returncode == 0, err

    run, update, rank = tmp_path / "killed", random.randrange(1, 30), random.randrange(2)
    elastic = launcher(
        *("accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2proc.yaml"),
        *("--main_process_port", 0, "--max_restarts", 2, "--monitor_interval", 0.2),
        *command("cifar", run, *steps, "--resume", "latest", processes=2),
    )
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < update:
        assert elastic.poll() is None
        time.sleep(0.005)
    (victim,) = (p for p in psutil.Process(elastic.pid).children() if p.environ().get("RANK") == str(rank))
    victim.kill()
    told = f"rank {rank} killed after update {update}"
    assert printed_by(elastic).count(" an epoch\n") == 2, f"{told}: said at each start"
    assert_same_weights(run, tmp_path / "whole", 0)
    steps_logged = [line["step"] for line in curve(run) if "train/loss" in line]
    assert steps_logged == list(range(1, 41)), f"{told}: each update stands once"
    assert curve(run)[-1] == curve(tmp_path / "whole")[-1], told
