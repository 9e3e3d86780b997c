"""What this machine can emulate, measured once."""
