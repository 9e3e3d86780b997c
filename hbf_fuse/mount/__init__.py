"""Connects a filesystem to an engine and runs the mount: start, background, watch, end."""
