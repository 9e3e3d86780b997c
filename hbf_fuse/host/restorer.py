"""Writes VALUE into FILE when stdin closes. Run as a script: restorer.py FILE VALUE. Stands alone.

Whoever changed FILE holds the other end of stdin, so it is put back however that process dies.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # systemd tells all processes of a service to end at once: this one has yet to do its work then.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    Path(sys.argv[1]).write_text(sys.argv[2])
