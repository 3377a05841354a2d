"""Scripts that were written for plain Horovod, run with DETOX without a change.

    horovodrun -np 6 python -m horovod_detox --group-size 3 train.py --its-own-flags

`launch.py` reads the flags and runs the script. `imports.py` puts our frontends in the place of
Horovod's. `stand_in.py` is what they do when the script initialises them and wraps an optimizer,
with `random_states.py` for random states; `torch/script.py` and `tensorflow/script.py` hold what
only one framework has.
"""
