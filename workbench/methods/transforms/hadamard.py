"""Orthogonal matrices that spread outliers: Hadamard where one is known for the size, else random."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError


def hadamard(size: int) -> Float[np.ndarray, "size size"] | None:
    """Return a matrix of +1 and -1 with orthogonal rows, float64, or None where the constructions here give none.

    Sylvester's doubling of a core of size 1, 2, or Paley's (q + 1 for primes q = 3 mod 4; 2 (q + 1) for primes q = 1 mod 4):
    768 = 64 * 12, 2560 = 128 * 20, 3584 = 128 * 28, 5376 = 64 * 84.

    Source: Paley 1933, On orthogonal matrices, constructions I and II.

    >>> hadamard(4).astype(int).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    if size < 1:
        return None
    core, doublings = size, 0
    while True:
        found = _core(core)
        if found is not None:
            break
        if core % 2:
            return None
        core, doublings = core // 2, doublings + 1
    # The core's rows are orthogonal because Paley's are; a slip would silently change a model. Doubling keeps it.
    if not np.array_equal(found @ found.T, core * np.eye(core)):
        message = f"the Hadamard construction of size {core} failed; this is a fault of the workbench"
        raise QuantizationError(message)
    for _ in range(doublings):
        found = np.block([[found, found], [found, -found]])
    return found


def orthogonal(size: int, seed: int = 0) -> Float[np.ndarray, "size size"]:
    """Return an orthogonal matrix, float64: a Hadamard matrix with random column signs, or a random one (Haar).

    Args:
        size: at least 1.
        seed: of signs and random matrices; the same seed gives the same matrix.

    Source: Ashkboos et al. 2024, QuaRot (arXiv 2404.00456), section 3.1 (randomized Hadamard matrices).

    Raises:
        QuantizationError: a size below 1.
    """
    if size < 1:
        message = f"a rotation has at least one dimension, not {size}"
        raise QuantizationError(message)
    generator = np.random.default_rng([seed, size])
    found = hadamard(size)
    if found is not None:
        return found * generator.choice([-1.0, 1.0], size)[None] / np.sqrt(size)
    q, r = np.linalg.qr(generator.standard_normal((size, size)))
    return q * np.sign(np.diag(r))[None]


def _core(size: int) -> np.ndarray | None:
    if size in {1, 2}:
        return np.array([[1.0]]) if size == 1 else np.array([[1.0, 1.0], [1.0, -1.0]])
    if size % 4:
        return None
    if size & (size - 1) == 0:
        return None  # doubling gives powers of two
    if _is_prime(size - 1) and (size - 1) % 4 == 3:
        return _paley_first(size - 1)
    half = size // 2 - 1
    return _paley_second(half) if _is_prime(half) and half % 4 == 1 else None


def _jacobsthal(q: int) -> np.ndarray:
    """Q[i, j] = chi(i - j), the quadratic character modulo a prime."""
    character = np.full(q, -1.0)
    character[(np.arange(1, q) ** 2) % q] = 1.0
    character[0] = 0.0
    place = np.arange(q)
    return character[(place[:, None] - place[None]) % q]


def _paley_first(q: int) -> np.ndarray:
    whole = np.zeros((q + 1, q + 1))
    whole[0, 1:] = 1.0
    whole[1:, 0] = -1.0
    whole[1:, 1:] = _jacobsthal(q)
    return whole + np.eye(q + 1)


def _paley_second(q: int) -> np.ndarray:
    whole = np.zeros((q + 1, q + 1))
    whole[0, 1:] = whole[1:, 0] = 1.0
    whole[1:, 1:] = _jacobsthal(q)
    plus, minus = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
    return np.kron(whole, plus) + np.kron(np.eye(q + 1), minus)


@lru_cache(maxsize=512)
def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
