"""What cannot be imported everywhere is not collected for its doctests."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["src/homeostat/kernels/*_gpu.py"]
