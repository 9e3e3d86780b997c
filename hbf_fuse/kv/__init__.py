"""KV spill: decode with a context longer than DRAM holds, by arithmetic, in virtual time and on a mount."""
