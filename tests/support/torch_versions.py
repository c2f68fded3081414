"""What earlier versions of torch cannot do."""

from __future__ import annotations

import pytest
import torch

_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))

needs_newer_export = pytest.mark.skipif(
    _VERSION < (2, 13),
    reason="torch.export of 2.7 refuses these networks; 2.8 to 2.12 were not tried",
)
needs_newer_fsdp = pytest.mark.skipif(
    _VERSION < (2, 13), reason="FSDP of 2.7 drifts from DDP; 2.8 to 2.12 were not tried"
)
