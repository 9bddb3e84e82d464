"""Fuzz a parser, guided by the coverage of its code: `python -m tests.fuzz.atheris_all TARGET --seconds 60`.

It begins with the good inputs and the corpus that is kept in `tests/fuzz/corpus/TARGET/`. An input that breaks a
promise ends it with a traceback and is left in `--found`; what reached new code lies in `new` there, and
`python -m tests.fuzz.keep TARGET FOLDER/new` makes the smallest set of it that reaches as much into the kept corpus.
"""

import argparse
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Final, NoReturn

import atheris

with atheris.instrument_imports(include=["streamdet", "tomllib"]):
    from tests.fuzz import targets

CORPUS: Final = Path(__file__).with_name("corpus")
# Every parser refuses far shorter ones, but a manifest; longer inputs only make a fuzzer slow.
INPUT_MAX_BYTES: Final = 4096
# An input that takes this long (s) or this much memory (MiB) has found something that grows too fast. A fuzzer itself
# takes 150 MiB and tries thousands of inputs a second; the machine may be busy.
INPUT_MAX_S: Final = 20
MEMORY_MAX_MIB: Final = 1024


class PlantedError(Exception):
    """No parser may raise this."""


@atheris.instrument_func
def bug(value: bytes | str) -> None:
    """Break on four bytes in a row, a branch that chance alone would need 2^32 tries for."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    at = data.find(b"~")
    if at >= 0 and data[at : at + 4] == b"~BUG":
        raise PlantedError


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--found", type=Path, default=Path(tempfile.mkdtemp(prefix="fuzz-")), help="folder of finds")
    parser.add_argument("--planted", action="store_true", help="with a bug in the parser, that must be found")
    return parser.parse_args()


def quoted(word: bytes) -> str:
    """Write a word as libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def fuzz(options: argparse.Namespace) -> NoReturn:
    """Hand over to libFuzzer, which ends the process: 0, or not 0 where something was found."""
    new = options.found / "new"
    new.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_len={INPUT_MAX_BYTES}", f"-timeout={INPUT_MAX_S}", f"-rss_limit_mb={MEMORY_MAX_MIB}"]
    run = [f"-max_total_time={options.seconds}", f"-artifact_prefix={options.found}/", "-print_final_stats=1"]
    # A control begins with nothing: four bytes are found sooner where there are few others to change.
    begin = [] if options.planted else beginnings(options.target, options.found)
    with targets.broken(options.target, bug) if options.planted else nullcontext():
        atheris.Setup([sys.argv[0], *limits, *run, str(new), *begin], targets.TARGETS[options.target])
        atheris.Fuzz()
    sys.exit(0)  # never reached


def beginnings(target: str, found: Path) -> list[str]:
    """Write the good inputs and the words that a target's inputs consist of, and give libFuzzer's names for them."""
    seeds, words, kept = found / "seeds", found / "words", CORPUS / target
    seeds.mkdir(exist_ok=True)
    for number, seed in enumerate(targets.small_seeds()[target]):
        (seeds / str(number)).write_bytes(seed)
    words.write_text("".join(f'"{quoted(word)}"\n' for word in targets.words()))
    return [f"-dict={words}", str(seeds), *([str(kept)] if kept.is_dir() else [])]


if __name__ == "__main__":
    fuzz(arguments())
