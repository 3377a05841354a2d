"""The commands of `horovod-detox`: each module has `add_arguments(parser)` and `run(args)`."""
