"""What must be so before any test module is imported."""

import os

import torch

if not torch.cuda.is_available():  # Triton reads it when it is first imported, which transformers may do
    os.environ.setdefault("TRITON_INTERPRET", "1")
