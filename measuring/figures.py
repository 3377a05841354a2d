"""What all figures share: their look, and how they are kept."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure

mpl.rcParams |= {
    "font.size": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
mpl.rcParams["svg.hashsalt"] = "horovod_detox"  # equal figures are equal files


def save(figure: Figure, path: Path, bottom: float = 0.0) -> None:
    """Write a figure, with room for a legend in this fraction of its height, and close it."""
    figure.tight_layout(rect=(0, bottom, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
