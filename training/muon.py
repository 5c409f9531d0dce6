"""Muon for filters and matrices, Nesterov SGD or AdamW for everything else, in one optimizer."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw


def orthogonalize(matrix: Tensor, n_steps: int = 3, eps: float = 1e-7) -> Tensor:
    """The matrix (n, m), or each of (..., n, m), with its singular values moved towards one, in its own dtype.

    Newton-Schulz iteration of the quintic 3.4445 x - 4.7750 x^3 + 2.0315 x^5, which takes small singular values
    up fastest and ends between about 0.7 and 1.2 (Jordan et al., Muon: https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.reshape(-1, *matrix.shape[-2:])
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + eps)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).reshape(matrix.shape)


def _orthogonalized(matrices: list[Tensor], n_steps: int) -> list[Tensor]:
    """`orthogonalize` of each matrix, or batch of matrices.

    On a GPU those of equal shape are one batch: some twenty kernels for all of them, where each would take as many.
    On a CPU, which launches none, each stays in the cache by itself.
    """
    if not _launches_kernels(matrices[0].device):
        return [orthogonalize(matrix, n_steps) for matrix in matrices]
    indices: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        indices.setdefault(matrix.shape, []).append(i)
    found: dict[int, Tensor] = {}
    for same in indices.values():
        batch = orthogonalize(torch.stack([matrices[i] for i in same]), n_steps)
        found |= zip(same, batch.unbind(), strict=True)
    return [found[i] for i in range(len(matrices))]


def _launches_kernels(device: torch.device) -> bool:
    return device.type != "cpu"


def _gradients(params: list[Tensor]) -> list[Tensor]:
    """Those of parameters that have one."""
    return [p.grad for p in params if p.grad is not None]


class Muon(Optimizer):
    """One optimizer, so that Accelerate has one gradient scaler and one state to keep, over two kinds of groups.

    Groups with `orthogonal=True` hold filters (C', C, k, k) or matrices: Nesterov momentum, the update
    orthogonalized as a (C', C k k) matrix, and the weights rescaled to the norm sqrt(C') before each update, so
    that `lr` is the share of a filter that one update turns. That norm suits filters whose scale a norm layer takes
    out again. In a net without norms the scale of the start is what keeps signals alive: with `keeps_norm=True`
    too, a filter is rescaled to the norm that it had before its first update, and turned by the same share. It is
    rescaled where `lr` is 0 too; one without a gradient stays as it is.

    The other groups follow torch's Nesterov SGD with `weight_decay`. Source: Jordan et al. 2024 as above, with the
    renormalisation of airbench94_muon.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.6,
        weight_decay: float = 0.0,
        n_steps: int = 3,
        dtype: torch.dtype = torch.float32,
    ):
        """`dtype` is that of the orthogonalization's matrix products: bfloat16 is enough where it is faster."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "n_steps": n_steps,
            "orthogonal": False,
            "keeps_norm": False,
        }
        super().__init__(params, defaults)
        self.dtype = dtype
        for group in self.param_groups:
            if group["orthogonal"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("orthogonal groups hold filters and matrices, not vectors")

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("keeps_norm", False)  # of a checkpoint from before there was a choice

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            buffers = [self._momentum_buffer(p) for p in params]
            grads = _gradients(params)
            if not group["orthogonal"] and group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            updates = torch._foreach_add(grads, buffers, alpha=group["momentum"])
            if group["orthogonal"]:
                matrices = [update.reshape(len(update), -1).to(self.dtype) for update in updates]
                directions = _orthogonalized(matrices, group["n_steps"])
                norms = torch._foreach_norm(params)
                for p, direction, norm_now in zip(params, directions, norms, strict=True):
                    if group["keeps_norm"]:
                        norm = self._first_norm(p)
                        p.mul_(norm / norm_now)
                        direction = direction * (norm / len(p) ** 0.5)
                    else:
                        p.mul_(len(p) ** 0.5 / norm_now)
                    p.add_(direction.view(p.shape), alpha=-group["lr"])
            else:
                torch._foreach_add_(params, updates, alpha=-group["lr"])
        return loss

    def _first_norm(self, p: Tensor) -> Tensor:
        """(): the norm before the first update."""
        state = self.state[p]
        if "first_norm" not in state:
            state["first_norm"] = p.norm()
        return state["first_norm"]

    def _momentum_buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


def muon_groups(model: nn.Module, head: Tensor, stacked: dict[str, int]) -> list[dict]:
    """The parameters of `model` in groups for `MuonAdamW`, of which Muon moves all matrices inside the model.

    AdamW moves embeddings and `head`, whose rows are words each by itself, and vectors, without weight decay.
    stacked: how many matrices lie one on the other in a parameter with that part in its name.
    """
    words = {head, *(module.weight for module in model.modules() if isinstance(module, nn.Embedding))}
    rows: list[Tensor] = []
    vectors: list[Tensor] = []
    inner: dict[int, list[Tensor]] = {}
    for name, p in model.named_parameters():
        if p.ndim <= 1:
            vectors.append(p)
        elif p in words:
            rows.append(p)
        else:
            inner.setdefault(next((n for part, n in stacked.items() if part in name), 1), []).append(p)
    groups = [{"params": matrices, "orthogonal": True, "n_blocks": n} for n, matrices in inner.items()]
    return [{"params": rows}, {"params": vectors, "weight_decay": 0.0}, *groups]


class MuonAdamW(Optimizer):
    """torch's AdamW, but for groups with `orthogonal=True`: they hold matrices, which follow Muon.

    Their update is the orthogonalized Nesterov momentum, each of the `n_blocks` equal blocks of a matrix's rows
    by itself (an LSTM's four gates), times 0.2 sqrt(max(n, m)) for a block (n, m). That is AdamW's usual root
    mean square, so one `lr` and one `weight_decay` do for both kinds (Liu et al. 2025, arXiv 2502.16982, section
    2.2). As in `Muon`, one optimizer gives Accelerate one state and one gradient scaler.
    """

    def __init__(
        self,
        params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        n_steps: int = 5,
        dtype: torch.dtype = torch.float32,
        fused: bool | None = None,
    ):
        """`betas` and `fused` are AdamW's; `momentum`, `n_steps` and `dtype` (of the matrix products) Muon's."""
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "fused": fused}
        defaults |= {"orthogonal": False, "momentum": momentum, "n_steps": n_steps, "n_blocks": 1}
        super().__init__(params, defaults)
        self.dtype = dtype
        for group in self.param_groups:
            for p in group["params"] if group["orthogonal"] else []:
                if p.ndim != 2 or len(p) % group["n_blocks"]:
                    raise ValueError(
                        f"shape {tuple(p.shape)} is no matrix of {group['n_blocks']} equal blocks of rows"
                    )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["orthogonal"]:
                self._step_matrices(params, group)
            elif params:
                self._step_others(params, group)
        return loss

    def _step_others(self, params: list[Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                # Where torch's AdamW has it too: unless one kernel does all, the host reads it for each parameter.
                self.state[p]["step"] = torch.zeros((), device=p.device if group["fused"] else "cpu")
                self.state[p] |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        kept = [[self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq", "step")]
        exp_avgs, exp_avg_sqs, steps = kept
        beta1, beta2 = group["betas"]
        adamw(
            params,
            _gradients(params),
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )

    def _step_matrices(self, params: list[Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads, buffers = _gradients(params), [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        blocks = [update.to(self.dtype).unflatten(0, (group["n_blocks"], -1)) for update in updates]
        directions = _orthogonalized(blocks, group["n_steps"])
        for p, direction in zip(params, directions, strict=True):
            p.add_(direction.reshape(p.shape), alpha=-group["lr"] * 0.2 * max(direction.shape[1:]) ** 0.5)
