"""What this machine and its kernel say and do."""
