"""Run real inputs through a model and keep what they tell: the ranges of its values."""

from workbench.calibration.ranges import RangeObserver, parse_range_rule

__all__ = ["RangeObserver", "parse_range_rule"]
