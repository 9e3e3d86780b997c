"""Measures: one cell is one mount and one llama-bench; a sweep is a grid of cells."""
