"""Where llama-bench has the weights from: a file for each mode, with `measure` in it."""
