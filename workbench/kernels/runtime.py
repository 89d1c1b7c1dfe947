"""How every kernel is compiled, and the one lock that parallel kernels are entered under."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

#: Two threads must never be inside parallel numba loops at once: with the ``workqueue`` threading layer numba aborts
#: the whole process then ("Concurrent access has been detected"), and with ``omp`` or ``tbb`` they only fight for the
#: same cores. Everything below ``workbench`` that starts a parallel loop holds this lock; it is re-entrant, so a caller
#: may hold it around a sequence of kernels.
lock = threading.RLock()

# numba falls through this list at the first parallel loop of the process; ``workqueue`` is what always exists.
config.THREADING_LAYER_PRIORITY = ["tbb", "omp", "workqueue"]  # pyright: ignore[reportAttributeAccessIssue]

#: Sums may be reordered and multiply-adds fused, and no operand is NaN (vector sums and maxima need this).
SUMS = frozenset({"reassoc", "contract", "nsz", "nnan"})


def kernel(
    *, parallel: bool = False, fastmath: Iterable[str] = (), inline: bool = False
) -> Callable[[Function], Function]:
    """Compile a loop: on-disk cache, no bounds checks, division as numpy's, the interpreter's lock released.

    The cache lies beside the module or, where the package is installed read-only, in the user's cache directory
    (numba's own rule). numba keys it by the module's own file: after editing a helper that another module's kernels
    call, delete ``__pycache__``.

    Args:
        parallel: whether the loop's ``prange`` run on all threads; callers then hold ``lock``.
        fastmath: LLVM's fast-math flags for the arithmetic of this function alone.
        inline: ask LLVM to inline this function into its callers.
    """
    options: dict[str, Any] = {
        "cache": True,
        "nogil": True,
        "error_model": "numpy",
        "boundscheck": False,
        "parallel": parallel,
    }
    flags = set(fastmath)
    if flags:
        options["fastmath"] = flags
    if inline:
        options["forceinline"] = True
    return numba.njit(**options)  # pyright: ignore[reportReturnType]


def exclusive(function: Function) -> Function:
    """Run a function under ``lock``."""

    @functools.wraps(function)
    def locked(*arguments: Any, **options: Any) -> Any:
        with lock:
            return function(*arguments, **options)

    return locked  # type: ignore[return-value]


def _take(typing_context, counter):  # noqa: ANN001, ANN202
    """Add one to counter[0] (int64) and return what it was; atomic, so that every thread gets another number."""

    def fetch_and_add(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), fetch_and_add


#: Threads deal themselves the next piece of work: one that the machine slows down holds up the rest for one piece only.
take: Any = intrinsic(_take)


def threads() -> int:
    """Return how many threads a parallel kernel started now would use."""
    return numba.get_num_threads()
