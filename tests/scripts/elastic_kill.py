"""An elastic job whose last rank is killed: what do the others, which go on, hear?"""

import os
import signal

import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox

STEPS = 12


def main():
    hvd.init(detox=Detox(group_size=2, outer="mean", timeout=20))
    torch.manual_seed(1)
    model = torch.nn.Linear(5, 1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1))
    last = hvd.rank() == hvd.size() - 1

    @hvd.elastic.run
    def train(state):
        print(f"begins with {hvd.size()} ranks in step {state.step}", flush=True)
        while state.step < STEPS:
            if last and state.step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            model(torch.ones(2, 5)).mean().backward()
            optimizer.step()
            state.step += 1
            state.commit()

    try:
        train(hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0))
    except RuntimeError as error:
        print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
