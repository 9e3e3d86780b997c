"""`python -m hbf_fuse` is `hbf`."""

from hbf_fuse.cli.entry import hbf

hbf()
