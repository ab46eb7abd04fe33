"""qdtune: sweeps over depth, bits and activation of factorised, quantised networks."""

__version__ = "0.1.0"
