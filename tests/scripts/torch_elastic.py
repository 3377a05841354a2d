"""A script for elastic jobs, in a job whose size does not change."""

import horovod.torch as hvd
import torch
from horovod.torch.elastic import ElasticSampler, TorchState

hvd.init()
dataset = torch.utils.data.TensorDataset(torch.linspace(-1, 1, 48).reshape(-1, 1))
sampler = ElasticSampler(dataset, shuffle=True)
loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=sampler)
model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())


@hvd.elastic.run
def train(state):
    while state.epoch < 3:
        for batch, (inputs,) in enumerate(loader):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), inputs.sin()).backward()
            optimizer.step()
            sampler.record_batch(batch, 4)
        state.epoch += 1
        sampler.set_epoch(state.epoch)
        state.commit()


train(TorchState(model=model, optimizer=optimizer, sampler=sampler, epoch=0))
