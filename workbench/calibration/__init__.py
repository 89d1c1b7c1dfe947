"""Run real inputs through a model and keep what they tell: ranges, moments, sampled rows, block by block."""

from workbench.calibration.data import Calibration
from workbench.calibration.model_statistics import layer_statistics
from workbench.calibration.ranges import RangeObserver, parse_range_rule
from workbench.calibration.statistics import LayerStatistics
from workbench.calibration.stream import BlockPlace, BlockStream

__all__ = [
    "BlockPlace",
    "BlockStream",
    "Calibration",
    "LayerStatistics",
    "RangeObserver",
    "layer_statistics",
    "parse_range_rule",
]
