"""Scripts as people write them: each is run as it is, and with a liar in every group.

A script trains a model and returns it. Particular to this package are its import and `hvd.group()`
where others deal data by `hvd.rank()`. docs/scripts.md has what is refused, and finer points.
"""

import io

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import horovod_detox.torch as hvd
from tests.distributed.torch.training import batch, digest, everywhere

LIARS = {3: (0,), 6: (0, 5)}  # of groups (0, 1, 2), or (0, 2, 4) and (1, 3, 5)
SCRIPTS = []


def script(function):
    SCRIPTS.append(function)
    return function


@pytest.mark.ranks(*LIARS)
@pytest.mark.parametrize("train", SCRIPTS, ids=lambda train: train.__name__)
def test_a_liar_changes_no_bit_and_is_named(start, monkeypatch, train):
    start(group_size=3)
    expected = digest(train())
    assert hvd.fault_report().dissents == {}
    assert set(everywhere(expected)) == {expected}
    liars = LIARS[hvd.size()]
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", f"reverse(scale=100)@{','.join(map(str, liars))}")
    start(group_size=3)
    assert digest(train()) == expected
    assert hvd.fault_report().dissents.keys() == {*liars}
    assert hvd.fault_report().steps > 0


def new_model(*more):
    """Return the same network on every rank."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3), *more)


def batches(steps=6):
    """Yield the batches of this rank's group."""
    return (batch(number, hvd.group()) for number in range(steps))


def sgd(model, **options):
    """Return a distributed optimizer."""
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return hvd.DistributedOptimizer(base, model.named_parameters(), **options)


def step(model, optimizer, inputs, labels):
    """Make a usual step; return the loss."""
    optimizer.zero_grad()
    loss = cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@script
def loop():
    model = new_model()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    base = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer = hvd.DistributedOptimizer(base, named_parameters=model.named_parameters())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    for inputs, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


@script
def loader_with_workers():
    model = new_model()
    optimizer = sgd(model)
    data = TensorDataset(*(torch.cat(part) for part in zip(*batches(2), strict=True)))
    sampler = hvd.GroupSampler(data)
    loader = DataLoader(data, 4, sampler=sampler, num_workers=1)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for inputs, labels in loader:
            step(model, optimizer, inputs, labels)
    return model


@script
def dropout_seeded_by_group():
    model = new_model(torch.nn.Dropout(0.2))
    hvd.seed_group(7)
    optimizer = sgd(model)
    for inputs, labels in batches():
        step(model, optimizer, inputs + 0.1 * torch.randn_like(inputs), labels)
    return model


@script
def accumulation():
    model = new_model()
    optimizer = sgd(model, backward_passes_per_step=2)
    for number, (inputs, labels) in enumerate(batches()):
        (cross_entropy(model(inputs), labels) / 2).backward()
        if number % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()
    return model


@script
def clipping():
    model = new_model()
    optimizer = sgd(model)
    for inputs, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return model


@script
def clipping_as_horovod_has_it():
    model = new_model()
    optimizer = sgd(model)
    for inputs, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        with optimizer.skip_synchronize():
            optimizer.step()
    return model


@script
def mixed_precision():
    model = new_model()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for inputs, labels in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(inputs), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model


@script
def closures():
    model = new_model()
    base = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
    optimizer = hvd.DistributedOptimizer(base, model.named_parameters())
    for inputs, labels in batches(2):

        def closure(inputs=inputs, labels=labels):
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
    return model


@script
def schedule_on_the_validation_loss():
    model = new_model()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
    for inputs, labels in batches():
        loss = step(model, optimizer, inputs, labels)
        schedule.step(hvd.agree(loss, by="mean"))
    return model


@script
def early_stopping():
    model = new_model()
    optimizer = sgd(model)
    best = float("inf")
    inputs_to_validate, labels_to_validate = batch(100, 0)  # the same on all ranks
    for inputs, labels in batches(20):
        step(model, optimizer, inputs, labels)
        loss = cross_entropy(model(inputs_to_validate), labels_to_validate).item()
        if hvd.agree(loss > best):
            break
        best = loss
    return model


@script
def a_collective_between_backward_and_step():
    model = new_model()
    optimizer = sgd(model)
    for inputs, labels in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), labels)
        loss.backward()
        hvd.allreduce(loss.detach(), name="loss")
        optimizer.step()
    return model


@script
def two_losses():
    model = new_model()
    optimizer = sgd(model, backward_passes_per_step=2)
    for inputs, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        (0.01 * model[0](inputs).square().mean()).backward()
        optimizer.step()
    return model


@script
def an_optimizer_for_the_body_and_one_for_the_head():
    model = new_model()
    optimizers = [
        hvd.DistributedOptimizer(torch.optim.SGD(part.parameters(), lr), part.named_parameters())
        for part, lr in ((model[0], 0.1), (model[2], 0.5))
    ]
    for inputs, labels in batches():
        for optimizer in optimizers:
            optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
    return model


@script
def adversarial_networks():
    generator, critic = new_model(), torch.nn.Linear(3, 1)
    of_generator, of_critic = sgd(generator), sgd(critic)
    for inputs, labels in batches():
        real = torch.nn.functional.one_hot(labels, 3).float()
        of_critic.zero_grad()
        (critic(generator(inputs).detach()).mean() - critic(real).mean()).backward()
        of_critic.step()
        of_generator.zero_grad()
        critic.requires_grad_(False)
        (-critic(generator(inputs)).mean()).backward()
        critic.requires_grad_(True)
        of_generator.step()
    return torch.nn.ModuleList([generator, critic])


@script
def gradient_penalty():
    model = new_model()
    optimizer = sgd(model)
    for inputs, labels in batches():
        optimizer.zero_grad()
        inputs.requires_grad_()
        loss = cross_entropy(model(inputs), labels)
        (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        (loss + slope.square().sum()).backward()
        optimizer.step()
    return model


@script
def sharpness_aware():
    model = new_model()
    optimizer = sgd(model)
    for inputs, labels in batches(3):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.synchronize()
        uphill = [0.01 * parameter.grad for parameter in model.parameters()]
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), uphill)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), uphill)
        optimizer.step()
    return model


@script
def mixture_of_experts():
    model = torch.nn.ModuleList([new_model(), new_model()])
    optimizer = sgd(model)
    for number, (inputs, labels) in enumerate(batches()):
        step(model[(number + hvd.group()) % 2], optimizer, inputs, labels)  # groups use others
    return model


@script
def checkpointed_layers():
    model = new_model()
    optimizer = sgd(model)
    for inputs, labels in batches():
        optimizer.zero_grad()
        hidden = checkpoint(model[:2], inputs.requires_grad_(), use_reentrant=False)
        cross_entropy(model[2](hidden), labels).backward()
        optimizer.step()
    return model


@script
def compiled():
    model = new_model()
    optimizer = sgd(model)
    forward = torch.compile(model, backend="eager")
    for inputs, labels in batches(3):
        step(forward, optimizer, inputs, labels)
    return model


@script
def tied_weights_and_sparse_embeddings():
    torch.manual_seed(0)
    words, output = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
    rare = torch.nn.Embedding(6, 4, sparse=True)
    output.weight = words.weight
    model = torch.nn.ModuleList([words, output, rare])
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(base, model.named_parameters())
    for _, labels in batches():
        optimizer.zero_grad()
        cross_entropy(output(words(labels) + rare(labels)), labels + 3).backward()
        optimizer.step()
    return model


@script
def a_hook_that_clips_each_gradient():
    model = new_model()
    optimizer = sgd(model)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    for inputs, labels in batches():
        step(model, optimizer, inputs, labels)
    return model


@script
def a_head_that_is_trained_first():
    model = new_model()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    for number, (inputs, labels) in enumerate(batches()):
        model[0].requires_grad_(number >= 3)
        step(model, optimizer, inputs, labels)
    return model


@script
def a_pass_that_runs_out_of_memory():
    model = new_model()
    optimizer = sgd(model)
    for number, (inputs, labels) in enumerate(batches()):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), labels)
        if number == 2:
            loss.register_hook(lambda gradient: 1 / 0)
        try:
            loss.backward()
        except ZeroDivisionError:
            continue  # with the next batch
        optimizer.step()
    return model


@script
def resuming_from_a_checkpoint():
    saved = io.BytesIO()
    model = new_model()
    optimizer = sgd(model)
    for number, (inputs, labels) in enumerate(batches()):
        if number == 3:  # as in another job: rank 0 has the file, and tells the others
            model = torch.nn.Sequential(*new_model())
            optimizer = sgd(model)
            if hvd.rank() == 0:
                saved.seek(0)
                state = torch.load(saved)
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            hvd.broadcast_parameters(model.state_dict(), root_rank=0)
            hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        step(model, optimizer, inputs, labels)
        if number == 2 and hvd.rank() == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    return model
