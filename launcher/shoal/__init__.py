"""Shoal fine-tunes transformer models on any Ray cluster from one job file."""

__version__ = "0.1.0"
