"""Where the installed commands begin: while they load, Ctrl-C ends them without a word."""

import importlib
import signal
from collections.abc import Callable


def _command(room: str) -> Callable[[], None]:
    """The main() of a file beside this one, loaded when it is called."""

    def begin() -> None:
        # Until common.guarded. Whoever was started with SIGINT ignored, as by nohup, goes on ignoring it.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        importlib.import_module(f"hbf_fuse.cli.{room}").main()

    return begin


hbf = _command("app")
hbf_mount = _command("mount")
hbf_umount = _command("umount")
hbf_sweep = _command("sweep")
mount_hbf = _command("mount_helper")
