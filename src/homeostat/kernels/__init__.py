"""The kernels: dropout, normalization, moments and augmentation near the speed of memory, the same on every device.

One stem per kernel: `X.py` checks, chooses a backend and knows the gradient; `X_reference.py` is plain torch and the
truth for every test; `X_cpu.py` (Numba) and `X_gpu.py` (Triton) are imported by `X.py` alone, when they are needed.
"""

from homeostat.kernels.backend import BACKENDS as BACKENDS
from homeostat.kernels.backend import backend_for as backend_for
