"""Augmentation of whole batches, by name: moves, crops, colors, blur, noise, policies; and a grid to look at."""

from homeostat.parts.augment.augmentation import AUGMENTATIONS as AUGMENTATIONS
from homeostat.parts.augment.augmentation import UINT8_DEVIATION as UINT8_DEVIATION
from homeostat.parts.augment.augmentation import Augment as Augment
from homeostat.parts.augment.augmentation import make_augment as make_augment
from homeostat.parts.augment.grid import preview as preview
