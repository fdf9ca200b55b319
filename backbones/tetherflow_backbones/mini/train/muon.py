"""Muon: momentum whose matrices are made orthogonal, which learns far more a step than Adam does here.

After K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the step size
of arXiv 2502.16982, section 2.2, so that one learning rate suits these matrices and AdamW's parameters alike.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ORTHOGONAL = "orthogonal"
"""Key of a parameter group: whether its weights take Muon's step rather than AdamW's."""


class Muon(torch.optim.AdamW):
    """Muon for the groups that ask for it, AdamW for the others.

    Args:
        groups: Parameter groups, each with `orthogonal`; weights of more than two dimensions are taken as
            matrices whose rows are the outputs.
        momentum: Of Muon's groups.
        options: AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95, **options: Any) -> None:
        super().__init__(groups, **options)
        self.momentum = momentum

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, after calling `closure` if there is one, whose result is returned."""
        result = closure() if closure is not None else None
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group[ORTHOGONAL]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group[ORTHOGONAL]:
                self._turn(group)
        return result

    @torch.no_grad()
    def _turn(self, group: dict[str, Any]) -> None:
        """Muon's step of one group; matrices of a shape go through it together."""
        alike: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                alike[weight.flatten(1).shape].append(weight)
        for shape, weights in alike.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    # AdamW looks for a step number in every state that it loads.
                    self.state[weight] = {"step": torch.tensor(0.0), "momentum": torch.zeros_like(weight)}
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            ahead = torch._foreach_lerp(gradients, momenta, self.momentum)  # Nesterov's
            steps = orthogonal(torch.stack([each.flatten(1) for each in ahead])).mul(
                0.2 * math.sqrt(max(shape))
            )
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            changes = [each.reshape(weight.shape) for each, weight in zip(steps, weights, strict=True)]
            torch._foreach_add_(weights, changes, alpha=-group["lr"])


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices `[N, rows, columns]` with singular values about 1, by Newton-Schulz iteration."""
    x: Tensor = matrices.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT
