"""Run a script that was written for plain Horovod: `python -m horovod_detox script.py`."""

import sys

from horovod_detox.launcher.launch import main

if __name__ == "__main__":
    sys.exit(main())
