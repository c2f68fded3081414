"""How the ranks of a trial share its model."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spark_hpo.train.rendezvous.world import World


def share_model(model: nn.Module, world: World) -> nn.Module:
    """Return the module that is trained. Its backward pass averages the gradients over all ranks."""
    if not world.is_distributed or not any(p.requires_grad for p in model.parameters()):
        return model
    device_ids = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids)
