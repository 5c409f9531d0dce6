"""The losses of a translation model on a batch, for tests of the models alone."""

from torch import Tensor

from models.linear_cross_entropy import linear_cross_entropy


def token_losses(model, source, target, labels, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sums over the label tokens of the smoothed cross-entropy and of the plain one, in nats."""

    def objective(states: Tensor, output_weight: Tensor) -> dict[str, Tensor]:
        smoothed, plain = linear_cross_entropy(states, output_weight, labels, label_smoothing)
        return {"smoothed": smoothed, "plain": plain}

    sums = model(source, target, objective)
    return sums["smoothed"], sums["plain"]
