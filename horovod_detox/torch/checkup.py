"""A small network whose gradient needs the usual kernels of torch, for `horovod-detox doctor`."""

import horovod.torch as hvd
import numpy as np
import torch
from torch import nn

from horovod_detox.preflight import PreflightReport
from horovod_detox.torch.trial import preflight
from horovod_detox.trial import SEED


def checkup() -> PreflightReport:
    """Let all ranks compute the gradient of the network, on a GPU if they have one."""
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{hvd.local_rank() % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    rng = np.random.default_rng(SEED)
    model = network()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.from_numpy(rng.normal(0, 0.1, tuple(weight.shape))))
    inputs = torch.from_numpy(rng.normal(size=(32, 3, 16, 16)).astype(np.float32))
    return preflight(model.to(device), inputs.to(device))


def network() -> nn.Module:
    """Return a network with convolutions, batch normalisation and matrix products."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
