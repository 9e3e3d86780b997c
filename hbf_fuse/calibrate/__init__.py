"""Measures once what this machine can emulate."""
