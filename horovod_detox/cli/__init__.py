"""The console script `horovod-detox`: `main.py`, and a module for each command."""
