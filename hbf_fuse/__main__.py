"""`python -m hbf_fuse` is `hbf`."""

from hbf_fuse.cli.app import main

main()
