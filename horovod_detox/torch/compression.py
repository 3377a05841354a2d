"""What gradients travel as: Horovod's compressors and ours, which need no Horovod."""

from typing import Any

import horovod.torch as hvd

from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.packing.torch import BF16, Signs


class Compression(hvd.Compression):
    """Compressors of gradients, for `compression=`.

    Attributes:
        none, fp16, bf16: votes are aggregated in float32, whatever they travel as.
        sign: one bit per element, for `Detox(outer="sign_majority")` only. The update is 1 or -1
            everywhere: 1 where the majority's gradient is 0, as that of an unused parameter is.
    """

    bf16: Any = BF16
    sign: Any = Signs


__getattr__ = _fall_through(__name__)
