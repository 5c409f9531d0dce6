"""What autocast does to the inputs of a product, done once for all products that read the same tensor."""

import torch
from torch import Tensor


def in_product_dtype(x: Tensor) -> Tensor:
    """x as autocast's matrix products read it; as it is where autocast is off.

    Autocast keeps the weights that it has cast, but casts any other tensor anew for each product, and its gradients
    back one by one.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
