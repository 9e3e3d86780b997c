"""The Linux FUSE protocol in Python: abi (bytes), mounting, session (requests), notify (evictions)."""
