"""Joins a filesystem to an engine and looks after the mount: start, background, watch, end."""
