"""The laboratory: all ranks of a job simulated in one process, with PyTorch; measurements."""
