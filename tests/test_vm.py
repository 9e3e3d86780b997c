"""The project under stock Debian kernels with cgroup v2, booted in QEMU: only with --vm.

The checks inside the guests are in tools/vm/guest/checks.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hbf_fuse.workload import child

CHECK = Path(__file__).parents[1] / "tools/vm/check.py"
KERNELS = ("linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64")
GROUPS = ("kernel", "mount", "limits", "doctor")
SKIPPED = 77
SECONDS = 600

pytestmark = pytest.mark.timeout(SECONDS + 60)


@pytest.fixture(scope="module", params=KERNELS)
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Boots a guest once for all tests of its kernel; each result has group, check, ok and detail."""
    if not request.config.getoption("--vm"):
        pytest.skip("boots virtual machines: ask for it with --vm")
    line = [sys.executable, str(CHECK), "--json", "--seconds", str(SECONDS), "--kernel", request.param]
    ended = child.run_group(line, timeout_seconds=SECONDS + 50)
    if ended.returncode == SKIPPED:
        pytest.skip(ended.stderr.strip())
    found = [json.loads(text) for text in ended.stdout.splitlines()]
    assert found, ended.stderr
    if found[-1]["seconds"] >= SECONDS:
        pytest.skip(f"this machine is too slow for it: the guest did not come to its end in {SECONDS} s")
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_every_check_holds_in_a_guest(results, group):
    checks = [result for result in results if result["group"] == group]
    assert checks
    failed = [f"{check['check']}: {check['detail']}" for check in checks if not check["ok"]]
    assert not failed, "\n".join(failed)
