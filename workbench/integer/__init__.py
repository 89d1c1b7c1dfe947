"""Integer-only inference: named rounding semantics, operators, whole models, judges.

Imports stand in the order of the modules' own needs. They are eager because some functions share their module's name:
the import system would otherwise leave the module where the function belongs.
"""

from workbench.integer.accumulator import Accumulator, as_accumulator, needed_bits, worst_case
from workbench.integer.activations import gelu, hard_swish, leaky_relu, logistic, relu, relu6, silu, tanh
from workbench.integer.convolution import conv2d, convolve
from workbench.integer.cost import LayerCost, OperationCount, operation_count
from workbench.integer.elementwise import add, addition_multipliers, mul, sub
from workbench.integer.encoder import IntegerEncoder, integer_encoder, output_encoder
from workbench.integer.fixed_point import check_multiplier, effective_scale, quantize_multiplier
from workbench.integer.gathering import argmax, embedding
from workbench.integer.graph import Graph, Node, Value
from workbench.integer.graph_builder import load_tokenizer
from workbench.integer.grid_linear import GridLinear, grid_linear, prepare_linear
from workbench.integer.integerize import integerize
from workbench.integer.kv_cache import KVCache, decode, generate
from workbench.integer.layer_cost import compare_layers
from workbench.integer.layer_geometry import Window
from workbench.integer.layer_run import LayerRun, run_layer
from workbench.integer.level_table import LevelTable, level_table
from workbench.integer.level_tensor import LevelTensor, level_tensor
from workbench.integer.linear import accumulate, linear, matmul
from workbench.integer.lut_linear import LutLinearWeight, lut_linear, prepare_lut_weight
from workbench.integer.model import IntegerModel
from workbench.integer.normalization import NormalizationConstants, layer_norm, normalization_constants, rms_norm
from workbench.integer.operator import Operator, Setting
from workbench.integer.operators import OPERATORS, register
from workbench.integer.polynomials import i_erf, i_exp, i_gelu, i_softmax, i_sqrt
from workbench.integer.pooling import average_pool2d, global_average_pool, max_pool2d, mean, mean_multiplier
from workbench.integer.power_domain import PowerDomain, power_domain
from workbench.integer.requantize import requantize
from workbench.integer.rescaling import concat, rescale_codes
from workbench.integer.roots import integer_power, integer_sqrt
from workbench.integer.rotary import RotaryTable, rotary, rotary_table
from workbench.integer.running import Run
from workbench.integer.semantics import SEMANTICS, Semantics, as_semantics, outside_linear
from workbench.integer.softmax import softmax
from workbench.integer.tables import LookupTable, lookup_table
from workbench.integer.trace import Step, Terms, Trace
from workbench.integer.watch import Observation, Watch, watch

__all__ = [
    "OPERATORS",
    "SEMANTICS",
    "Accumulator",
    "Graph",
    "GridLinear",
    "IntegerEncoder",
    "IntegerModel",
    "KVCache",
    "LayerCost",
    "LayerRun",
    "LevelTable",
    "LevelTensor",
    "LookupTable",
    "LutLinearWeight",
    "Node",
    "NormalizationConstants",
    "Observation",
    "OperationCount",
    "Operator",
    "PowerDomain",
    "RotaryTable",
    "Run",
    "Semantics",
    "Setting",
    "Step",
    "Terms",
    "Trace",
    "Value",
    "Watch",
    "Window",
    "accumulate",
    "add",
    "addition_multipliers",
    "argmax",
    "as_accumulator",
    "as_semantics",
    "average_pool2d",
    "check_multiplier",
    "compare_layers",
    "concat",
    "conv2d",
    "convolve",
    "decode",
    "effective_scale",
    "embedding",
    "gelu",
    "generate",
    "global_average_pool",
    "grid_linear",
    "hard_swish",
    "i_erf",
    "i_exp",
    "i_gelu",
    "i_softmax",
    "i_sqrt",
    "integer_encoder",
    "integer_power",
    "integer_sqrt",
    "integerize",
    "layer_norm",
    "leaky_relu",
    "level_table",
    "level_tensor",
    "linear",
    "load_tokenizer",
    "logistic",
    "lookup_table",
    "lut_linear",
    "matmul",
    "max_pool2d",
    "mean",
    "mean_multiplier",
    "mul",
    "needed_bits",
    "normalization_constants",
    "operation_count",
    "output_encoder",
    "outside_linear",
    "power_domain",
    "prepare_linear",
    "prepare_lut_weight",
    "quantize_multiplier",
    "register",
    "relu",
    "relu6",
    "requantize",
    "rescale_codes",
    "rms_norm",
    "rotary",
    "rotary_table",
    "run_layer",
    "silu",
    "softmax",
    "sub",
    "tanh",
    "watch",
    "worst_case",
]
