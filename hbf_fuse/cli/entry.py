"""Where the installed commands begin: while they load, Ctrl-C ends them without a word.

What a library cannot bear is put right before it loads: closed standard streams, a current directory without
a name.
"""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable

from hbf_fuse import streams
from hbf_fuse.errors import of_system


def _command(room: str) -> Callable[[], None]:
    """The main() of a file beside this one, loaded when it is called."""

    def begin() -> None:
        # Until common.guarded. Whoever was started with SIGINT ignored, as by nohup, goes on ignoring it.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        streams.occupy()
        streams.name_output()
        os.getcwd = _here
        try:
            main = importlib.import_module(f"hbf_fuse.cli.{room}").main
        except OSError as error:
            streams.say(f"hbf: {of_system(error)}")
            sys.exit(1)
        main()

    return begin


_getcwd = os.getcwd


def _here() -> str:
    """The current directory. One whose name cannot be told, as on a mount that has ended, counts as gone:
    libraries that ask, even while they load, expect no other error.
    """
    try:
        return _getcwd()
    except OSError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error


hbf = _command("app")
hbf_mount = _command("mount")
hbf_umount = _command("umount")
hbf_sweep = _command("sweep")
mount_hbf = _command("mount_helper")
