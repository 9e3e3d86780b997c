"""One target under libFuzzer, by atheris: fuzz_target.py TARGET, then libFuzzer's own arguments. Run by fuzz.py."""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

with atheris.instrument_imports(include=["hbf_fuse", "tomllib"]):
    from fuzzing.promise import check
    from fuzzing.targets import TARGETS

INSTRUMENTED_SECONDS = 5.0
"""CPU seconds for an input: counting branches makes Python several times slower."""


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, lambda data: check(target, data, INSTRUMENTED_SECONDS))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
