"""How much a latent tells: the label that a probe reads from it, and how many of its units are in use."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.seeding import Stream, seeded_generator

N_STEPS = 400
BATCH_SIZE = 512
HIDDEN = 128  # units in each of the MLP's two hidden layers
LR = 2e-2  # at the start; it falls to zero along a cosine
WEIGHT_DECAY = 1e-2


@torch.enable_grad()
def probe_accuracy(
    train_latents: Tensor,
    train_labels: Tensor,
    test_latents: Tensor,
    test_labels: Tensor,
    n_classes: int,
    seed: int,
) -> dict[str, float]:
    """How often a classifier of the latents names the label of the test set: "linear", "mlp" and "chance".

    `linear` and `mlp` are the shares of right labels, 0 to 1, of logistic regression and of a perceptron with
    two hidden layers, each trained with AdamW for `N_STEPS` batches of the training latents. `chance` is the
    share of the most frequent label in the test set, which a guess without the latent reaches. Where the label
    is given beside the latent, probes near `chance` say that the latent does not repeat it.

    Latents (N, D) float and (M, D), labels (N,) and (M,) int64 from 0 to `n_classes` - 1, all on the CPU.
    Latents are standardised by the training set, so that units of a small scale are read like the others: give
    samples of the posterior rather than its means, whose least digits no decoder sees through the noise.

    The same `seed` gives the same result; the global random state is left as it was.

    Raises `ValueError` for an empty set, and where latents and labels differ in length.
    """
    for name, latents, labels in (("train", train_latents, train_labels), ("test", test_latents, test_labels)):
        if not len(latents) or len(latents) != len(labels):
            raise ValueError(f"{name}: {len(latents)} latents and {len(labels)} labels")
    train, test = train_latents.detach().float(), test_latents.detach().float()
    mean, std = train.mean(0), train.std(0, correction=0).clamp_min(1e-6)  # a constant unit has no scale
    train, test = (train - mean) / std, (test - mean) / std
    n_units = train.shape[1]
    with torch.random.fork_rng(devices=[]):
        generator = seeded_generator(torch.device("cpu"), Stream.LABEL_PROBE, seed)
        torch.set_rng_state(generator.get_state())  # of the CPU alone, which is what is put back
        probes = {
            "linear": nn.Linear(n_units, n_classes),
            "mlp": nn.Sequential(
                nn.Linear(n_units, HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, n_classes),
            ),
        }
        accuracy = {}
        for name, probe in probes.items():
            _fit(probe, train, train_labels)
            with torch.no_grad():
                accuracy[name] = (probe(test).argmax(1) == test_labels).double().mean().item()
    return accuracy | {"chance": test_labels.bincount().max().item() / len(test_labels)}


def _fit(probe: nn.Module, latents: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(probe.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    for _ in range(N_STEPS):
        ids = torch.randint(len(labels), (BATCH_SIZE,))
        optimizer.zero_grad()
        F.cross_entropy(probe(latents[ids]), labels[ids]).backward()
        optimizer.step()
        schedule.step()


def active_units(latent_means: Tensor, threshold: float = 0.01) -> int:
    """Of how many latent units the posterior mean varies over the data with a variance above `threshold`.

    `latent_means`: (N, D), the mean of q(z | x) for each of N images. The other units have collapsed to the
    prior. Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", arXiv 1509.00519,
    section 5.2, whose threshold is 0.01.
    """
    return int((latent_means.double().var(0, correction=0) > threshold).sum())
