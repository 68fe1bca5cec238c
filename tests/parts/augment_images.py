"""Random images for the tests of augmentation, the same at every call."""

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=64, channels=3, height=12, width=10, dtype=torch.uint8):
    values = torch.randint(1, 256, (n, channels, height, width), generator=generator(9))
    return values.to(dtype).to(memory_format=torch.channels_last)


def pictures(n, channels, height, width, dtype, channels_last=False):
    """Pixels in 0..255, or as floats in 0..1."""
    x = images(n, channels, height, width)
    x = x if dtype == torch.uint8 else (x / 255).to(dtype)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
