"""Programs that are run and measured: llama-bench and what is seen of it."""
