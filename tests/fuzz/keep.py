"""Make finds of a fuzzer into the corpus that is kept: `python -m tests.fuzz.keep TARGET FOLDER`.

Of what is kept already and the folder, as few and as short ones as together take every step from one line of our code
to another that all of them take, and no good input takes. Greedy: the shortest first, unless it has nothing new.
"""

import argparse
import hashlib
import sys
import tomllib
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from tests.fuzz import targets

CORPUS: Final = Path(__file__).with_name("corpus")
# Of each target, so that the repository stays small.
KEPT_FILES: Final = 30
KEPT_BYTES: Final = 20_000
# Ours, and a parser in Python that we hand bytes to.
PACKAGES: Final = tuple(str(Path(module.__file__).parent) for module in (targets.bundle, tomllib))

Steps = set[tuple[CodeType, int, int]]


def steps(target: targets.Target, data: bytes) -> Steps:
    """Give the steps between lines of the package that an input takes."""
    found: Steps = set()
    at: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGES):
            return None
        if event == "line":
            found.add((frame.f_code, at.get(frame, 0), frame.f_lineno))
            at[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return found


def smallest(target: str, inputs: list[bytes]) -> list[bytes]:
    """Give the inputs to keep."""
    run = targets.TARGETS[target]
    taken: Steps = set().union(*(steps(run, seed) for seed in targets.small_seeds()[target]))
    kept: list[bytes] = []
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        new = steps(run, data) - taken
        if new and len(kept) < KEPT_FILES and sum(map(len, kept)) + len(data) <= KEPT_BYTES:
            kept.append(data)
            taken |= new
    return kept


def main() -> None:
    """Read the inputs, write those to keep under the names that libFuzzer would give them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    place = CORPUS / options.target
    place.mkdir(parents=True, exist_ok=True)
    files = [file for folder in (place, options.folder) for file in folder.iterdir()]
    kept = smallest(options.target, [file.read_bytes() for file in files])
    for file in place.iterdir():
        file.unlink()
    for data in kept:
        (place / hashlib.sha1(data, usedforsecurity=False).hexdigest()[:12]).write_bytes(data)
    sys.stdout.write(f"{options.target}: {len(kept)} of {len(files)} inputs, {sum(map(len, kept))} bytes\n")


if __name__ == "__main__":
    main()
