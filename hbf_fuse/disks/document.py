"""A fitted tier as a profile: TOML in which every value says when, where and how it was measured."""

import json
from dataclasses import asdict

from hbf_fuse.disks.fitting import Fit
from hbf_fuse.disks.target import Target
from hbf_fuse.host import machine
from hbf_fuse.tier import TierSpec, profiles
from hbf_fuse.units import format_size


def profile(name: str, target: Target, fit: Fit) -> str:
    """The text of a profile file. SpecError if it would not be one."""
    date, kernel = machine.now()["time"][:10], machine.facts()["kernel"]
    where = f"{date}, {target.about}, Linux {kernel}, a file of {format_size(target.size)}"
    how = f"{where}; fitted to {len(fit.errors_pct)} jobs, the middle one within {fit.middle_pct:.1f}%"
    lines = [f"about = {json.dumps(f'measured by hbf profile measure: {where}')}"]
    usual = asdict(TierSpec())
    for key, value in asdict(fit.spec).items():
        if value != usual[key]:
            shown = json.dumps(float(f"{value:.6g}") if isinstance(value, float) else value)
            lines += ["", f"[{key}]", f"value = {shown}", f"measured = {json.dumps(how)}"]
    text = "\n".join(lines) + "\n"
    profiles.parse(name, text)
    return text
