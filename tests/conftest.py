"""What must be so before any test module is imported."""

import os
import signal

import hypothesis
import torch

hypothesis.settings.register_profile("homeostat", deadline=None)  # a busy machine is slow
hypothesis.settings.load_profile("homeostat")

if not torch.cuda.is_available():  # Triton reads it when it is first imported, which transformers may do
    os.environ.setdefault("TRITON_INTERPRET", "1")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that Ctrl-C is ignored
