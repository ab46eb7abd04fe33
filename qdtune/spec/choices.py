"""The names that a sweep file may use, other than axes, pruners and data sets. No dependency at all."""

from __future__ import annotations

FLOAT_BITS = 32  # of weights: not quantised
METHODS = ("grid", "random", "tpe", "nsga2", "nsga3", "gp", "qmc")
PLANNED = ("grid", "random")  # known before anything runs; the others ask what came out so far
ORDERS = ("small_first", "large_first", "shuffled", "as_listed")
COMPILES = ("auto", "always", "never")
# Of `batch_norm`, beside true (a normalisation after each hidden layer) and false: between factors, too.
NORMS = ("factors",)
