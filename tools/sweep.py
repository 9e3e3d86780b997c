#!/usr/bin/env python3
"""The sweep, for users who look for it here: the same as `hbf sweep`."""

from hbf_fuse.cli.sweep import main

main()
