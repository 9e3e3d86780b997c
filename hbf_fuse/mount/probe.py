"""Reads through a mount from outside the server, as lean readers do. Run as a script: probe.py LIBRARY FD SIZE READS.

Stands alone. LIBRARY: the compiled form of lean.py, or lean.py itself. FD: inherited, opened to be read past the
page cache (O_DIRECT). Prints each read's time in ns as JSON, or nothing if a read failed.
"""

import contextlib
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location

if __name__ == "__main__":
    spec = spec_from_file_location("lean", sys.argv[1])
    if spec is None or spec.loader is None:
        sys.exit(f"{sys.argv[1]} is no module")
    lean = module_from_spec(spec)
    spec.loader.exec_module(lean)
    with contextlib.suppress(OSError):
        print(json.dumps(lean.measure(*map(int, sys.argv[2:]))))
