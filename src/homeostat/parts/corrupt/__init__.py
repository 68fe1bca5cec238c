"""Corrupted images: the 19 kinds of ImageNet-C and CIFAR-C in five severities."""

from homeostat.parts.corrupt.corruption import CORRUPTIONS as CORRUPTIONS
from homeostat.parts.corrupt.corruption import SEVERITIES as SEVERITIES
from homeostat.parts.corrupt.corruption import corrupt as corrupt
