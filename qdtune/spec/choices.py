"""The names that a sweep file may use, other than axes, pruners and data sets. It imports nothing."""

from __future__ import annotations

FLOAT_BITS = 32  # weights of 32 bits are not quantised
METHODS = ("grid", "random", "tpe", "nsga2", "nsga3", "gp", "qmc")
PLANNED = ("grid", "random")  # all configurations are known at the start; the other methods use the results so far
ORDERS = ("small_first", "large_first", "shuffled", "as_listed")
COMPILES = ("auto", "always", "never")
# Values of `batch_norm` besides false and true (a normalisation after each hidden layer): also between factors.
NORMS = ("factors",)
# How rows that are not uint8 are normalised: not, by the mean and spread of all numbers, or by those of each feature.
NORMALIZATIONS = ("none", "dataset", "feature")
# The questions that can get more seeds until they are decided: about an axis, or about neighbours on the front.
QUESTION_AXES, FRONT_QUESTION = ("depth", "activation"), "front"
