"""Binary coding in plain numpy: the published algorithms step by step, and the best coding by trying all of them."""

from __future__ import annotations

from itertools import product

import numpy as np


def signs_of(codes, bits):
    """(weights, bits) of -1 and 1: bit i of a code is the sign of alpha i."""
    return 2.0 * ((np.asarray(codes)[:, None] >> np.arange(bits)) & 1) - 1.0


def least_squares(w, f, signs, bias):
    columns = np.hstack([signs, np.ones((len(w), 1))]) if bias else signs
    root = np.sqrt(f)
    found = np.linalg.lstsq(columns * root[:, None], w * root, rcond=None)[0]
    return (found[:-1], found[-1]) if bias else (found, 0.0)


def weighted_error(w, f, signs, alphas, bias):
    return float((f * (w - signs @ alphas - bias) ** 2).sum())


def greedy(w, f, bits, bias, *, refine):
    """Planes from the highest down; returns signs (weights, bits), alphas, bias."""
    z = float((f * w).sum() / f.sum()) if bias else 0.0
    signs, alphas = np.zeros((len(w), bits)), np.zeros(bits)
    left = w - z
    for plane in range(bits - 1, -1, -1):
        signs[:, plane] = np.where(left >= 0.0, 1.0, -1.0)
        alphas[plane] = (f * np.abs(left)).sum() / f.sum()
        if refine:
            fitted, z = least_squares(w, f, signs[:, plane:], bias)
            alphas[plane:] = fitted
        left = w - signs @ alphas - z
    return signs, alphas, z


def nearest(w, alphas, bias):
    table = np.array(list(product([-1.0, 1.0], repeat=len(alphas))))
    return table[np.abs(w[:, None] - (table @ alphas + bias)).argmin(axis=1)]


def alternate(w, f, start, rounds, bias):
    """Nearest sums, then least squares, and so on; returns signs, alphas, bias."""
    alphas, z = start
    signs = nearest(w, alphas, z)
    for _ in range(rounds):
        alphas, z = least_squares(w, f, signs, bias)
        signs = nearest(w, alphas, z)
    return signs, alphas, z


def best_error(w, f, bits, bias):
    """Return the least error over every assignment of signs (2^(bits * weights) of them)."""
    table = np.array(list(product([-1.0, 1.0], repeat=bits)))
    least = np.inf
    for chosen in product(range(len(table)), repeat=len(w)):
        signs = table[list(chosen)]
        alphas, z = least_squares(w, f, signs, bias)
        least = min(least, weighted_error(w, f, signs, alphas, z))
    return least
