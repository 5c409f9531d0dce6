"""A net that trains on the hardest images of each batch alone, which a small net beside it picks.

After airbench96's proxy (Jordan, https://github.com/KellerJordan/cifar10-airbench): a net of a fraction of the work
picks half of each batch, so that an update costs half and leaves out what is known already. There the small net is
trained in a run before; here it learns beside the other. Shapes: B images, k of them picked, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROXY_SHARE = 0.25  # of a batch, that the small net learns from: its update costs as much as picking does


class HardExamplesOutput(NamedTuple):
    """In training. `logits` are of the images `picked`, `proxy_logits` of the first ones of the batch."""

    logits: Tensor  # (k, K), of the net
    picked: Tensor  # (k,) int64: their places in the batch
    proxy_logits: Tensor  # (n, K), of the small net


class HardExamples(nn.Module):
    """In training images (B, C, S, S), labels (B,) -> `HardExamplesOutput`; in evaluation images -> logits (B, K).

    `share` of each batch are picked: those of the highest cross-entropy under `proxy`. That learns from the first
    images of the batch, a random part of it where the order is random. Evaluated is `net` alone.
    """

    def __init__(self, net: nn.Module, proxy: nn.Module, share: float):
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"a share of {share}: give more than 0 and less than 1")
        self.net, self.proxy, self.share = net, proxy, share

    def init_whitening(self, images: Tensor) -> None:
        """Set the first layers from normalised images (N, C, S, S), of nets that begin by whitening."""
        for net in (self.net, self.proxy):
            if hasattr(net, "init_whitening"):
                net.init_whitening(images)  # type: ignore[operator]  # nn.Module's attributes may be tensors

    def forward(self, images: Tensor, labels: Tensor | None = None) -> HardExamplesOutput | Tensor:
        if labels is None:
            return self.net(images)
        with torch.no_grad():
            losses = F.cross_entropy(self.proxy(images).float(), labels, reduction="none")
            picked = losses.topk(max(1, round(self.share * len(images)))).indices
        n_learned = max(1, round(PROXY_SHARE * len(images)))
        return HardExamplesOutput(self.net(images[picked]), picked, self.proxy(images[:n_learned]))
