"""What a program of this package says and returns when it cannot do what it was asked for."""

BAD_INPUT = 2
"""The exit code of whoever is given what it cannot work with."""

TRY_AGAIN = 75
"""The exit code of a rank that ends because another is missing, as EX_TEMPFAIL of sysexits.h."""

REMEDIES = {
    "sklearn": "pip install scikit-learn",
    "torch": "pip install torch",
    "tensorflow": "pip install tensorflow",
    "horovod": "python tools/build_horovod.py, in a checkout of horovod_detox",
}
"""How to get the modules that only some programs need."""
