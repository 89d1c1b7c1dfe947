"""Which dot-product instructions this CPU has, and the tags by which kernels are compiled for one of them."""

from __future__ import annotations

import functools
from typing import NamedTuple

from llvmlite import binding


class Vnni512(NamedTuple):
    """AVX-512 with VNNI: 64 products of unsigned and signed bytes, added to 16 sums, per instruction."""

    lanes: int = 16


class Vnni256(NamedTuple):
    """AVX-VNNI, or AVX-512 VNNI at 256 bits: 32 products per instruction."""

    lanes: int = 8


class Avx512(NamedTuple):
    """AVX-512 without VNNI: bytes are widened to 16 bits, whose pairwise products are exact in 32 (``vpmaddwd``)."""

    lanes: int = 16


class Avx2(NamedTuple):
    """AVX2: as ``Avx512`` at 256 bits."""

    lanes: int = 8


class Neon(NamedTuple):
    """Arm with the dot-product extension: 16 products of bytes of one sign per instruction (``sdot``, ``udot``)."""

    lanes: int = 4


class Portable(NamedTuple):
    """Any CPU: LLVM turns plain vector arithmetic into whatever the machine has."""

    lanes: int = 4


InstructionSet = Vnni512 | Vnni256 | Avx512 | Avx2 | Neon | Portable

#: By the name under which tests and benchmarks ask for one; fastest first.
INSTRUCTION_SETS: dict[str, InstructionSet] = {
    "vnni512": Vnni512(),
    "vnni256": Vnni256(),
    "avx512": Avx512(),
    "avx2": Avx2(),
    "neon": Neon(),
    "portable": Portable(),
}

_NEEDS = {
    "vnni512": ({"avx512f", "avx512bw", "avx512vnni"},),
    "vnni256": ({"avx2", "avxvnni"}, {"avx512vl", "avx512bw", "avx512vnni"}),
    "avx512": ({"avx512f", "avx512bw"},),
    "avx2": ({"avx2"},),
    "neon": ({"dotprod"},),
    "portable": (set(),),
}


@functools.cache
def available() -> tuple[str, ...]:
    """Return the names of the instruction sets that this CPU has, fastest first."""
    features = {name for name, present in binding.get_host_cpu_features().items() if present}
    if binding.get_process_triple().startswith(("arm64-apple", "aarch64-apple")):
        # Every Apple CPU that macOS runs on has it; LLVM lists features there only since its version 19.
        features.add("dotprod")
    return tuple(name for name, ways in _NEEDS.items() if any(way <= features for way in ways))


def instruction_set(name: str | None = None) -> InstructionSet:
    """Return an instruction set's tag: the one of that name, or the fastest that this CPU has.

    Raises:
        ValueError: this CPU does not have it.
    """
    if name is None:
        return INSTRUCTION_SETS[available()[0]]
    if name not in available():
        message = f"this CPU has {', '.join(available())}, not {name!r}"
        raise ValueError(message)
    return INSTRUCTION_SETS[name]
