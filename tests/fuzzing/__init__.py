"""What is fuzzed, and how: shared by tests/test_fuzz.py and tools/fuzz."""
