"""SpeedNet: a small convolutional net that learns CIFAR-10 in a few epochs.

After cifar10-airbench (Jordan, arXiv 2404.00498) and hlb-CIFAR10: a first layer that whitens 2x2 patches and is
not trained, three blocks of two convolutions, pooling before the norm, norms without scale, GELU, and small
logits to begin with. Shape legend: B images, C channels, S side, k side of a patch, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convolution import Conv2d

NO_VARIANCE = 1e-6  # as a share of the strongest direction's; the faintest of CIFAR-10 has 6e-5


def whitening_filters(images: Tensor, kernel_size: int = 2, eps: float = 5e-4) -> Tensor:
    """Filters with uncorrelated responses of equal variance on the patches of `images`, and their negatives.

    images (N, C, S, S), normalised -> (2 C k k, C, k, k) in float32. A filter is an eigenvector of the patches'
    second moments over the square root of its eigenvalue; `eps` keeps the faint ones from blowing up. Directions
    that no patch has, as between the equal channels of grey images, would give channels of rounding errors, which a
    batch norm blows up to full size: the other filters come again in their place.
    """
    c = images.shape[1]
    patches = images.float().unfold(2, kernel_size, 1).unfold(3, kernel_size, 1)  # (N, C, S', S', k, k)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, c * kernel_size**2)
    moments = (patches.T @ patches / len(patches)).double()
    eigenvalues, eigenvectors = torch.linalg.eigh(moments)
    # Largest first, and with a positive largest entry: the sign that eigh returns is arbitrary.
    eigenvalues, eigenvectors = eigenvalues.flip(0), eigenvectors.flip(1)
    largest = eigenvectors.abs().argmax(0)
    eigenvectors = eigenvectors * eigenvectors.gather(0, largest[None]).sign()
    n_directions = int((eigenvalues > NO_VARIANCE * eigenvalues[0]).sum().clamp(min=1))
    taken = torch.arange(len(eigenvalues)) % n_directions
    filters = (eigenvectors / (eigenvalues + eps).sqrt()).T[taken].reshape(-1, c, kernel_size, kernel_size)
    return torch.cat([filters, -filters]).float()


class Block(nn.Module):
    """Two convolutions with norm and GELU, pooled after the first: (B, C, S, S) -> (B, C', S // 2, S // 2)."""

    def __init__(self, in_channels: int, out_channels: int, norm_momentum: float):
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = norm(out_channels, norm_momentum)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels, norm_momentum)
        for conv in (self.conv1, self.conv2):  # begin by passing the input on (Zagoruyko & Komodakis, DiracNets)
            nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    """Batch norm with a trained bias and a fixed scale of one."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=momentum)
    layer.weight.requires_grad_(False)
    return layer


class SpeedNet(nn.Module):
    """Images (B, C, S, S) -> logits (B, K). 1,972,792 parameters for CIFAR-10, 1,971,352 of them trained.

    Call `init_whitening` with some normalised training images before training.
    """

    SMALLEST_SIDE = 17  # the poolings leave two positions: batch norm wants them

    def __init__(
        self,
        n_classes: int = 10,
        in_channels: int = 3,
        widths: tuple[int, int, int] = (64, 256, 256),
        norm_momentum: float = 0.4,
    ):
        super().__init__()
        n_filters = 2 * in_channels * 2**2
        self.whiten = nn.Conv2d(in_channels, n_filters, 2)
        self.whiten.weight.requires_grad_(False)
        assert self.whiten.bias is not None
        nn.init.zeros_(self.whiten.bias)
        channels = [n_filters, *widths]
        self.blocks = nn.Sequential(
            *(Block(c, c_next, norm_momentum) for c, c_next in zip(channels[:-1], widths, strict=True))
        )
        self.classifier = nn.Linear(widths[-1], n_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=1 / widths[-1])  # small logits: few can run away early

    @torch.no_grad()
    def init_whitening(self, images: Tensor) -> None:
        """Set the first layer from normalised images (N, C, S, S)."""
        self.whiten.weight.copy_(whitening_filters(images, self.whiten.kernel_size[0]))

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.whiten(images))  # (B, 24, S - 1, S - 1)
        x = self.blocks(x)  # (B, 256, 3, 3) from 32x32
        x = F.max_pool2d(x, x.shape[2:]).flatten(1)  # the adaptive one is not deterministic on CUDA
        return self.classifier(x)
