"""Loops over arrays, compiled by numba: sketching, exact error, encoding and decoding, statistics.

Importing this package costs nothing; its modules import numba when they are first used. Every parallel loop is entered
under ``workbench.kernels.runtime.lock`` (see there why).
"""
