"""`python -m hbf_fuse` runs `hbf`."""

from hbf_fuse.cli.entry import hbf

hbf()
