"""`mount.hbf`: what mount(8) and fstab call for the type hbf, under the names that they expect.

mount(8) runs `mount.hbf SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`. The options are
those of hbf-mount by their long names, beside the generic ones of mount(8): those of its man page and of
libmount's maps (util-linux, libmount/src/optmap.c) are all named here. A value with commas stands in double
quotes.

For `mount -o remount MOUNTPOINT` without a line in fstab, mount(8) takes type and options from the mount
table. It then runs mount.fuse.hbf, which is a link to this, with the kernel's options.
"""

import argparse
import re
import sys
from typing import Any, NoReturn

import typer

from hbf_fuse.cli.common import fail, guarded, new_app, tell
from hbf_fuse.cli.mount import mount
from hbf_fuse.errors import HbfError

WRONG_USAGE, INTERRUPTED, MOUNT_FAILED = 1, 8, 32
"""Exit codes as mount(8) knows them."""

_HOLDS = re.compile(
    r"ro(=(recursive|vfs|fs))?|nosuid|nodev|noexec|default_permissions|"
    r"(no|rel|norel|nodir|dir|strict|nostrict)?atime|(no)?lazytime|"
    r"(a|dir)?sync|(no)?mand|(no)?iversion|silent|loud|(no)?sub|symfollow|seclabel"
)
"""True of every mount of hbf, or without a meaning for one that nobody writes to."""

_OF_THE_TABLE = re.compile(r"(user_id|group_id|max_read|blksize)=\d+")
"""How the kernel shows a mount. With remount, mount(8) passes it on."""

_LIMITED = {"rw": "read-only but for .hbf/control", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
"""What mount(8) may ask for and nobody gets: what the mount is instead."""

_FOR_OTHERS = re.compile(
    r"defaults|(no)?(auto|users?|owner|group)|pamconsole|_r?netdev|nofail|(user|comment|u?helper)=.*|[xX]-.*"
)
"""Words for mount(8) and systemd, which both pass on some of them."""

_REFUSED = (
    (
        r"nosymfollow",
        "names in the mount may be links",
        "`mount -o remount,bind,nosymfollow MOUNTPOINT` adds it",
    ),
    (r"r?bind|move", "that needs no type", "`mount --bind`, `mount --move`"),
    (
        r"r?(shared|private|slave|unbindable)",
        "mount(8) does this to what is mounted",
        "`mount --make-shared MOUNTPOINT`, for example",
    ),
    (
        r"(loop|offset|sizelimit|encryption|verity\..*)",
        "hbf serves files, not block devices",
        "mount the device, and serve a file of it",
    ),
    (r"(fs|def|root)?context", "mounts of hbf have no SELinux labels of their own", "leave it out"),
)
"""What mount(8) knows and no mount of hbf can have: names, why, and what to do."""

_OWN = frozenset({"foreground", "help"})
"""Of hbf-mount's options, those that make no sense here: mount(8) waits for the helper to return."""

_OPTION = re.compile(r'(?:"[^"]*"|[^",])+')


def known_options(command: Any) -> dict[str, bool]:
    """The long options of a typer command without their dashes, and whether each takes a value."""
    return {
        name[2:]: not option.is_flag
        for option in command.params
        if option.param_type_name == "option"
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--") and name[2:] not in _OWN
    }


def translated(
    options: str, known: dict[str, bool], sloppy: bool = False, verbose: bool = False
) -> list[str]:
    """hbf-mount's arguments for the text after -o. UsageError for what is unknown or incomplete.

    sloppy: leave out what is unknown, with a remark. verbose: say what is not as asked.
    """
    if options.count('"') % 2:
        raise UsageError(f"-o {options}: a double quote is not closed")
    arguments = []
    remount = "remount" in options.split(",")
    for option in _OPTION.findall(options):
        name, has_value, value = option.replace('"', "").partition("=")
        # mount(8) says rw whenever nobody said ro: only who asks for details wants to hear of it.
        if name in _LIMITED and (verbose or name != "rw"):
            tell(f"-o {name} has no effect: mounts of hbf are {_LIMITED[name]}")
        if _HOLDS.fullmatch(option) or name in _LIMITED or _FOR_OTHERS.fullmatch(option):
            continue
        if remount and _OF_THE_TABLE.fullmatch(option):
            continue
        long = name.replace("_", "-")
        if long not in known:
            error = _refusal(name, known)
            if not sloppy:
                raise error
            tell(str(error))
        elif known[long] and not has_value:
            raise UsageError(f"-o {name} needs a value: {name}=...")
        elif has_value and not known[long]:
            raise UsageError(f"-o {name} takes no value")
        else:
            arguments.append(f"--{long}={value}" if has_value else f"--{long}")
    return arguments


class UsageError(HbfError):
    """What mount(8) was told makes no sense."""


def _refusal(name: str, known: dict[str, bool]) -> UsageError:
    for names, reason, remedy in _REFUSED:
        if re.fullmatch(names, name):
            return UsageError(f"-o {name} is not possible: {reason}", remedy)
    return UsageError(f"unknown option -o {name}", f"known: {', '.join(sorted(known))}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "usage: mount.hbf SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="mount.hbf", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="a GGUF, or a directory of them")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="leave out unknown options")
    parser.add_argument("-f", dest="fake", action="store_true", help="check the options, do not mount")
    parser.add_argument("-n", dest="unlisted", action="store_true", help="nothing: there is no mtab to write")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what is done")
    parser.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="not possible: use nsenter")
    parser.add_argument("-t", dest="type", metavar="TYPE", help="nothing: there is one type")
    parser.add_argument(
        "-o", dest="options", metavar="OPTIONS", action="append", default=[], help="mbps=500,lat=1"
    )
    return parser.parse_args(arguments)


def _run() -> None:
    app = new_app()
    app.command()(mount)
    command: Any = typer.main.get_command(app)
    try:
        wanted = _parsed(sys.argv[1:])
        if wanted.namespace:
            raise UsageError(
                f"-N {wanted.namespace} is not possible: source and server would be in another namespace",
                f"`nsenter --mount={wanted.namespace} mount -t hbf ...` mounts where all of it is",
            )
        options = translated(",".join(wanted.options), known_options(command), wanted.sloppy, wanted.verbose)
        line = [*options, "--", wanted.source, wanted.mountpoint]
        if wanted.verbose:
            tell(f"hbf-mount {' '.join(line)}")
        if not wanted.fake:
            command.main(line, prog_name="mount.hbf", standalone_mode=False)
    except UsageError as error:
        fail(str(error), WRONG_USAGE)
    except typer.BadParameter as error:
        fail(error.format_message(), WRONG_USAGE)
    except typer.Abort:
        sys.exit(INTERRUPTED)


def main() -> None:
    """The entry point."""
    guarded(_run, failure=MOUNT_FAILED)


if __name__ == "__main__":
    main()
