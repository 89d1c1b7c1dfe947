"""The same kernels on a GPU, in numba-cuda: same names, same results. Imported only when asked for."""
