"""The numbers that constraints may name."""

from __future__ import annotations

BUDGETS = (
    "size_bytes",
    "params",
    "weight_bytes",
    "scale_bytes",
    "bias_bytes",
    "other_bytes",
    "fp32_bytes",
    "depth",
    "weight_bits",
)
