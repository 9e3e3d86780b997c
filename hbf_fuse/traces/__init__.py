"""Traces of reads and their analysis."""
