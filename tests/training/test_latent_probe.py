import math

import pytest
import torch

from training import latent_probe as label_probe
from training.latent_probe import active_units, probe_accuracy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(latents: torch.Tensor, labels: torch.Tensor) -> tuple:
    half = len(labels) // 2
    return latents[:half], labels[:half], latents[half:], labels[half:]


def test_separable_blobs_are_read_whatever_the_scale_of_the_units():
    labels = torch.arange(2000) % 5
    centres = 8 * torch.eye(5, 6)
    latents = torch.randn(2000, 6, generator=generator()) + centres[labels]
    scaled = latents * torch.tensor([1e-3, 1e3, 1.0, 1.0, 1.0, 1.0]) + 50
    accuracy = probe_accuracy(*split(scaled, labels), n_classes=5, seed=0)
    assert set(accuracy) == {"linear", "mlp", "chance"}
    assert accuracy["linear"] > 0.99 and accuracy["mlp"] > 0.99
    assert accuracy["chance"] == 0.2


def test_independent_labels_are_guessed_by_chance():
    latents, labels = (
        torch.randn(8000, 16, generator=generator()),
        torch.randint(10, (8000,), generator=generator(1)),
    )
    accuracy = probe_accuracy(*split(latents, labels), n_classes=10, seed=0)
    sampling_error = math.sqrt(0.1 * 0.9 / 4000)
    for probe in ("linear", "mlp"):
        assert abs(accuracy[probe] - 0.1) < 4 * sampling_error
    assert accuracy["chance"] == labels[4000:].bincount().max().item() / 4000


def test_with_uneven_classes_chance_is_the_largest_share_of_the_test_set():
    labels = (torch.rand(8000, generator=generator(1)) < 0.8).long()
    latents = torch.randn(8000, 4, generator=generator())
    accuracy = probe_accuracy(*split(latents, labels), n_classes=3, seed=0)
    assert accuracy["chance"] == labels[4000:].double().mean().item()
    assert accuracy["linear"] == pytest.approx(accuracy["chance"], abs=0.02)


def test_only_the_mlp_reads_an_exclusive_or():
    latents = torch.randn(8000, 8, generator=generator())
    labels = ((latents[:, 0] > 0) ^ (latents[:, 1] > 0)).long()
    accuracy = probe_accuracy(*split(latents, labels), n_classes=2, seed=0)
    assert accuracy["mlp"] > 0.95
    assert abs(accuracy["linear"] - 0.5) < 0.05


def test_deterministic_for_a_seed_and_leaves_the_random_state_and_gradients_alone(monkeypatch):
    monkeypatch.setattr(label_probe, "N_STEPS", 20)
    latents = torch.randn(400, 4, generator=generator(), requires_grad=True)
    data = split(latents, torch.randint(3, (400,), generator=generator(1)))
    state = torch.get_rng_state()
    with torch.no_grad():  # as in an evaluation
        first = probe_accuracy(*data, n_classes=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert probe_accuracy(*data, n_classes=3, seed=5) == first
    assert latents.grad is None
    assert probe_accuracy(*data, n_classes=3, seed=6) != first


def test_a_collapsed_unit_and_latents_of_an_inference_do_no_harm(monkeypatch):
    monkeypatch.setattr(label_probe, "N_STEPS", 100)
    with torch.inference_mode():
        latents = torch.randn(400, 3, generator=generator(), dtype=torch.bfloat16)
        latents[:, 2] = 0.25
    labels = (latents[:, 0] > 0).long()
    assert latents.is_inference()
    accuracy = probe_accuracy(*split(latents, labels), n_classes=2, seed=0)
    assert accuracy["linear"] > 0.9


@pytest.mark.parametrize(("n_latents", "n_labels"), [(0, 0), (3, 4)])
def test_sets_that_cannot_be_probed_are_refused(n_latents, n_labels):
    latents, labels = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=f"test: {n_latents} latents and {n_labels} labels"):
        probe_accuracy(latents, labels, latents[:n_latents], labels[:n_labels], n_classes=2, seed=0)


def test_active_units_are_those_whose_mean_varies():
    std = torch.tensor([1.0, 0.2, 0.11, 0.09, 0.01, 0.0])
    wave = torch.sin(torch.arange(1000) * (2 * math.pi / 1000)) * math.sqrt(2)  # variance 1
    means = wave[:, None] * std + 3
    assert active_units(means) == 3
    assert active_units(means, threshold=0.03) == 2
    assert active_units(means.bfloat16(), threshold=0.5) == 1
