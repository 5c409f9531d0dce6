import json

import pytest
import torch

from tools.diagnosis.estimates import FLOP, RATES, Rate, estimates, keep_rates, known_rates, measure_rate

HERE = Rate("a laptop", 4, "bf16", 2.0)


def record(root, name: str, recipe: str, hardware: str, device: str, seconds: float) -> None:
    numbers = {
        "train_seconds": seconds - 1,
        "total_seconds": seconds,
        "n_parameters": 10,
        "mixed_precision": "bf16",
        "device": device,
        "num_processes": 1,
        "peak_memory_mb": 512.0,
    }
    others = dict.fromkeys(("note", "chosen_on", "command", "commit", "code", "seeds", "log", "std", "runs"))
    whole = {"name": name, "script": "train_cifar.py", "recipe": recipe, "hardware": hardware, "numbers": numbers}
    (root / "results" / f"{name}.json").write_text(json.dumps(whole | others))


@pytest.fixture
def root(tmp_path):
    """A repository with three records of one recipe and another, whose hardware is known or not."""
    for name in ("train_cifar.py", "accelerate_configs/cpu.yaml", "results/records.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    entry = (
        "- {{name: {0}, title: a, script: train_cifar.py, recipe: {1}, launch: cpu, seeds: [0], minutes: 1, "
        "hardware: any, chosen_on: nothing{2}}}\n"
    )
    rows = [("plain", "speedrun", ""), ("shown", "speedrun", ", task: a, score: test/accuracy")]
    rows += [("gpu", "speedrun", ", gpu: true"), ("other", "resnet", "")]
    (tmp_path / "results/records.yaml").write_text("records:\n" + "".join(entry.format(*row) for row in rows))
    record(tmp_path, "plain", "speedrun", "a server", "CPU (2 threads)", 50.0)
    record(tmp_path, "shown", "speedrun", "a server", "CPU (2 threads)", 100.0)
    record(tmp_path, "gpu", "speedrun", "a GPU", "a GPU", 3.0)
    record(tmp_path, "other", "resnet", "a stranger", "CPU (2 threads)", 900.0)
    keep_rates([Rate("a server", 2, "bf16", 1.0), Rate("a GPU", 0, "bf16", 600.0)], tmp_path)
    return tmp_path


def test_a_recipe_is_estimated_from_its_published_record_by_the_rates(root):
    speedrun, resnet = estimates(HERE, root)
    assert (speedrun.recipe, speedrun.seconds, speedrun.seconds_here) == ("speedrun", 100.0, 50.0)
    assert (resnet.recipe, resnet.seconds, resnet.seconds_here) == ("resnet", 900.0, None)  # a stranger's rate
    assert speedrun.on == "a server, bf16" and speedrun.memory_mb == 512.0


def test_gpus_are_compared_with_gpus_alone(root):
    (speedrun,) = estimates(Rate("a small GPU", 0, "fp16", 60.0), root)
    assert (speedrun.seconds, speedrun.seconds_here) == (3.0, 30.0)


def test_kept_rates_replace_those_of_the_same_kind(root):
    keep_rates([Rate("a server", 2, "bf16", 3.0), Rate("a server", 1, "bf16", 1.5)], root)
    assert [(rate.hardware, rate.threads, rate.tflops) for rate in known_rates(root)] == [
        ("a GPU", 0, 600.0),
        ("a server", 1, 1.5),
        ("a server", 2, 3.0),
    ]
    assert (root / RATES).read_text().count("\n") == 5  # a line each: readable in a diff


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_rate_is_that_of_the_steps_that_were_made(monkeypatch, precision):
    ticks = iter(range(10**6))
    monkeypatch.setattr("tools.diagnosis.estimates.time.perf_counter", lambda: 0.5 * next(ticks))
    monkeypatch.setattr("tools.diagnosis.estimates.N_TOKENS", 8)
    threads = torch.get_num_threads()
    rate = measure_rate(torch.device("cpu"), precision, "here", threads=1)
    assert rate == Rate("here", 1, precision, float(f"{FLOP / 0.5 / 1e12:.3g}"))
    assert torch.get_num_threads() == threads


def test_the_rates_of_this_repository_are_of_machines_that_made_records():
    assert all(rate.tflops > 0 for rate in known_rates())
    on_cpus = estimates(Rate("here", 2, "bf16", 1.0))
    assert any(estimate.seconds_here is not None for estimate in on_cpus)
