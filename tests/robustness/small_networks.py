"""Small networks for attacks: smooth ones, and one with every kinked activation; what must not change on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and evaluation mode, with weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) * (2 / fan) ** 0.5)
    return model


def convolutional(activation: type[nn.Module], seed: int = 0) -> nn.Module:
    """Two convolutions, pooling, two linear layers; `[N, 3, 16, 16]` in, `[N, 4]` out."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 8, 5, padding=2), activation(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), activation(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 12), activation(), nn.Linear(12, 4),
    ]  # fmt: skip
    return seeded(nn.Sequential(*layers), seed)


class Soft(nn.Module):
    """Softplus of a fixed beta."""

    def __init__(self, beta: float = 10.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        return F.softplus(z, self.beta)


def images(count: int = 2, seed: int = 1, side: int = 16) -> Tensor:
    """Smooth random images in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, dtype=torch.float64, generator=generator)
    fine = torch.rand(count, 3, side, side, dtype=torch.float64, generator=generator)
    return 0.7 * F.interpolate(coarse, (side, side), mode="bilinear") + 0.3 * fine


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a model, and of the random generators, that an attack must not change."""
    names = [key for key in vars(global_hooks) if key.startswith("_global_") and key.endswith("hooks")]
    own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "hooks": [len(getattr(global_hooks, key)) for key in names],
        "own hooks": [len(getattr(module, key)) for module in model.modules() for key in own],
        "training": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "children": [list(module._modules) for module in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "grad mode": torch.is_grad_enabled(),
        "modes": torch.overrides._get_current_function_mode_stack(),
        "random": torch.get_rng_state().tolist(),
    }
