"""Transforms before rounding: they change a block's weights, never what it computes."""

from workbench.methods.transforms.rotation import rotate
from workbench.methods.transforms.transform import Transform, all_transforms, parse_transform

__all__ = ["Transform", "all_transforms", "parse_transform", "rotate"]
