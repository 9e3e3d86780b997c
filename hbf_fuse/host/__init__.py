"""Facts and actions of this machine and its kernel."""
