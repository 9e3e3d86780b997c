"""The commands: each file parses, calls one thing below, and prints."""
