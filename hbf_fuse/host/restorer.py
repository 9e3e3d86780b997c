"""Writes VALUE into FILE when stdin closes. Run as a script: restorer.py FILE VALUE. Imports nothing of
hbf_fuse.

The process that changed FILE holds the other end of stdin. So FILE is restored however that process dies.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # systemd signals all processes of a service at once, and this one must still restore FILE.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    Path(sys.argv[1]).write_text(sys.argv[2])
