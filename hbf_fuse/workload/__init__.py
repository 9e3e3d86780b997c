"""Programs that are run and measured: llama-bench and its waits."""
