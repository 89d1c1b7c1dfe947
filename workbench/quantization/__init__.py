"""Tensor in, ``QuantizedTensor`` out: granularity, scale rules, error, bits, sketches and searches.

Imports stand in the order of the modules' own needs. They are eager because some functions share their module's name:
the import system would otherwise leave the module where the function belongs.
"""

from workbench.quantization.bits import Storage, bits_per_weight, storage
from workbench.quantization.granularity import PerAxis, PerGroup, PerTensor, parse_granularity
from workbench.quantization.metrics import error
from workbench.quantization.quantize import QuantizedTensor, quantize
from workbench.quantization.report import ErrorReport
from workbench.quantization.scales import AbsMax, BestClip, GivenScale, Percentile, parse_scale_rule
from workbench.quantization.source import Matrix, as_matrix

__all__ = [
    "AbsMax",
    "BestClip",
    "ErrorReport",
    "GivenScale",
    "Matrix",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "Percentile",
    "QuantizedTensor",
    "Storage",
    "as_matrix",
    "bits_per_weight",
    "error",
    "parse_granularity",
    "parse_scale_rule",
    "quantize",
    "storage",
]
