"""The loops over bytes that Python is too slow for, compiled by numba on first use.

Everything here works on numpy arrays and releases the interpreter lock, so threads use all cores.
Importing a module of this folder imports numba (0.3 s); the rest of the tokenizers does not.
"""
