"""What is not collected for its doctests: fixtures, and what cannot be imported everywhere."""

from importlib.util import find_spec

collect_ignore_glob = ["*/conftest.py"] + ([] if find_spec("triton") else ["src/homeostat/kernels/*_gpu.py"])
