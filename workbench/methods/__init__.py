"""Methods that choose codes, scales and exponents: data-free, second-order and learned; each behind the same call."""

from workbench.methods.method import Method, all_methods, parse_method
from workbench.methods.result import LayerResult
from workbench.methods.run import Run, Trace
from workbench.methods.task import BlockTask, LayerTask

__all__ = ["BlockTask", "LayerResult", "LayerTask", "Method", "Run", "Trace", "all_methods", "parse_method"]
