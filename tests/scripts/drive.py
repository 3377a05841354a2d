"""Run scripts of this folder one after another in one job, and write what came of them.

horovodrun -np 6 python tests/scripts/drive.py job.json

The file holds the cases, {"name": [flags, script, its arguments]}, and gets their results. Without
flags of ours, that is null in their place, a script runs under plain Horovod.
"""

import hashlib
import json
import os
import random
import runpy
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

from horovod_detox.launcher.arguments import parse
from horovod_detox.launcher.imports import Finder
from horovod_detox.launcher.launch import run
from horovod_detox.launcher.stand_in import Script

FOLDER = Path(__file__).parent


def main(path):
    cases = json.loads(path.read_text())
    job, results = Script(), {}
    sys.meta_path.insert(0, Finder(job))
    for name, (flags, script, rest) in cases.items():
        command = [str(FOLDER / script), *rest]
        if flags is None:
            sys.argv = command
            sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, Finder)]
            module, ledger = runpy.run_path(command[0], run_name="__main__"), None
        else:
            asked = parse([*flags, *command])
            os.environ.pop("HOROVOD_DETOX_ATTACK", None)
            os.environ.update(asked.variables)
            job.protected = False
            forget()
            unseed()
            module = run(asked)
            assert job.protected
            ledger = job.session.ledger()
        results[name] = everyones(weights(module["model"]))
        if ledger:
            report = ledger.report()
            results[name] |= {
                "steps": report.steps,
                "dissents": report.dissents,
                "abstentions": report.abstentions,
            }
    if os.environ["HOROVOD_RANK"] == "0":
        path.with_suffix(".results").write_text(json.dumps(results))


def forget():
    """Begin the next script without a session, as a new process does."""
    for framework in ("torch", "tensorflow"):
        if module := sys.modules.get(f"horovod_detox.{framework}.context"):
            module.context.forget()


def unseed():
    """Have random states as in a new process: others on every rank."""
    random.seed()
    np.random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(random.getrandbits(31))


def weights(model):
    """Return a digest of the bits of a model's weights."""
    if hasattr(model, "named_parameters"):
        arrays = [parameter.detach().numpy() for parameter in model.parameters()]
    else:
        arrays = [variable.numpy() for variable in model.trainable_variables]
    assert all(np.isfinite(array).all() for array in arrays)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:10]


def everyones(digest):
    """Return the digests of all ranks, with the framework whose Horovod is there."""
    framework = "torch" if "horovod.torch" in sys.modules else "tensorflow"
    hvd = import_module(f"horovod.{framework}")
    return {"weights": hvd.allgather_object(digest)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
