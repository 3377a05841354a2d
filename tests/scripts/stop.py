"""Train, and let one rank stop in its eighth step: stop.py FRONTEND HOW RANK TIMEOUT."""

import os
import signal
import subprocess
import sys
import time

AT = 8


def steps(how):
    """Return how many steps the training has, if nothing ends it."""
    if how == "late":
        return int(os.environ.get("SOAK", 200))
    return 124 if how == "nap" else 24  # some seconds, in which it is heard to be back


def stop(how):
    """Do what a rank may do that others wait for."""
    if how == "sleep":
        time.sleep(1000)
    elif how == "nap":
        time.sleep(15)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "error":
        raise ValueError("a bad sample")
    elif how == "exit":
        sys.exit(0)
    elif how == "_exit":
        os._exit(0)
    elif how in ("kill", "term"):
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGTERM)
    elif how == "lock":  # of python's interpreter, in a function that is not python's
        import ctypes

        ctypes.PyDLL(None).sleep(1000)
    elif how == "late":
        time.sleep(0.12)
    elif how == "pause":  # until somebody lets it go on
        subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)


def is_due(step, how, rank):
    return rank == int(sys.argv[3]) and (step == AT or (how == "late" and step > 2))


def with_torch(how, timeout):
    import torch

    import horovod_detox.torch as hvd
    from horovod_detox import Detox

    sets = {"process_sets": "dynamic"} if how == "set" else {}
    hvd.init(**sets, detox=Detox(group_size=3, timeout=timeout))
    torch.manual_seed(1)
    model = torch.nn.Linear(5, 1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1))
    data = torch.utils.data.TensorDataset(torch.ones(steps(how), 5))
    workers = {"num_workers": 1, "multiprocessing_context": "fork"}
    loader = torch.utils.data.DataLoader(data, **(workers if how in ("kill", "stop") else {}))
    if how == "set":
        pair = hvd.add_process_set([0, 1])
    for step, (batch,) in enumerate(loader):
        if is_due(step, how, hvd.rank()):
            stop(how)
        if step == AT and how in ("reduce", "other", "set"):
            if hvd.rank() == int(sys.argv[3]):
                stop("sleep") if how != "other" else hvd.allreduce(torch.ones(1), name="loss")
            elif how == "reduce":
                hvd.allreduce(torch.ones(1), name="loss")
            elif how == "set" and pair.included():
                hvd.allreduce(torch.ones(1), name="pair", process_set=pair)
        optimizer.zero_grad()
        output = model(batch)
        if how == "backward":
            output = hvd.allgather(output, name="outputs")
            if step == AT and hvd.rank() == int(sys.argv[3]):
                stop("sleep")
        output.mean().backward()
        optimizer.step()
        time.sleep(0.02)
    return hvd


def with_keras(how, timeout):
    import keras
    import numpy as np
    import tensorflow as tf

    import horovod_detox.tensorflow as hvd
    from horovod_detox import Detox
    from horovod_detox.keras import DistributedOptimizer

    @tf.function
    def mean_of_all(loss):
        return hvd.allreduce(loss, name="loss")

    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if is_due(batch, how, hvd.rank()):
                stop(how)
            if batch == AT and how == "reduce":
                if hvd.rank() == int(sys.argv[3]):
                    stop("sleep")
                hvd.allreduce(np.ones(1, np.float32), name="loss")
            if how == "function":
                if batch == AT and hvd.rank() == int(sys.argv[3]):
                    stop("sleep")
                mean_of_all(tf.ones(1))
            time.sleep(0.02)

    hvd.init(detox=Detox(group_size=3, timeout=timeout))
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    inputs = np.ones((steps(how), 5), np.float32)
    model.fit(inputs, inputs[:, :1], batch_size=1, verbose=0, callbacks=[Stop()])
    return hvd


def main():
    frontend, how, _, timeout = sys.argv[1:]
    hvd = {"torch": with_torch, "keras": with_keras}[frontend](how, float(timeout))
    report = hvd.fault_report()
    latest = max(report.late, key=lambda rank: report.late[rank].seconds, default=None)
    print(f"rank {hvd.rank()}: {report}; latest is {latest}", flush=True)


if __name__ == "__main__":
    main()
