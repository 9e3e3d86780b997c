"""Fuzzing targets and tools: shared by tests/test_fuzz.py and tools/fuzz."""
