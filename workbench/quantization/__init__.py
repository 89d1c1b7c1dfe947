"""Tensor in, ``QuantizedTensor`` out: granularity, scale rules, error, bits, sketches and searches.

Imports stand in the order of the modules' own needs. They are eager because some functions share their module's name:
the import system would otherwise leave the module where the function belongs.
"""

from workbench.quantization.binary_coding import BinaryCodedTensor, from_uniform, quantize_binary
from workbench.quantization.bits import Storage, bits_per_weight, storage
from workbench.quantization.exact import best_group_clips, exact_error
from workbench.quantization.granularity import PerAxis, PerGroup, PerTensor, parse_granularity
from workbench.quantization.landscape import Landscape, landscape
from workbench.quantization.lloyd import CodebookFit, kmeans, lloyd_max
from workbench.quantization.maps import WeightMap, weight_map
from workbench.quantization.metrics import error
from workbench.quantization.occupancy import Occupancy, occupancy
from workbench.quantization.quantize import QuantizedTensor, quantize
from workbench.quantization.report import ErrorReport
from workbench.quantization.scales import AbsMax, BestClip, GivenScale, Percentile, parse_scale_rule
from workbench.quantization.search import ClipSearch, ExponentSearch, best_clip, search_exponent
from workbench.quantization.sketch import Sketch, sketch, sketch_error, sketch_for
from workbench.quantization.source import Matrix, as_matrix
from workbench.quantization.statistics import (
    ChannelStatistics,
    Histogram,
    LargestWeights,
    QuantilePoints,
    WeightStatistics,
    histogram,
    largest_weights,
    qq_points,
    weight_statistics,
)

__all__ = [
    "AbsMax",
    "BestClip",
    "BinaryCodedTensor",
    "ChannelStatistics",
    "ClipSearch",
    "CodebookFit",
    "ErrorReport",
    "ExponentSearch",
    "GivenScale",
    "Histogram",
    "Landscape",
    "LargestWeights",
    "Matrix",
    "Occupancy",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "Percentile",
    "QuantilePoints",
    "QuantizedTensor",
    "Sketch",
    "Storage",
    "WeightMap",
    "WeightStatistics",
    "as_matrix",
    "best_clip",
    "best_group_clips",
    "bits_per_weight",
    "error",
    "exact_error",
    "from_uniform",
    "histogram",
    "kmeans",
    "landscape",
    "largest_weights",
    "lloyd_max",
    "occupancy",
    "parse_granularity",
    "parse_scale_rule",
    "qq_points",
    "quantize",
    "quantize_binary",
    "search_exponent",
    "sketch",
    "sketch_error",
    "sketch_for",
    "storage",
    "weight_map",
    "weight_statistics",
]
