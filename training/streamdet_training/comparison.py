"""From what was asked for to sections: read, score, listen, evaluate."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, get_args

import msgspec
from rich.console import Console
from rich.status import Status

from streamdet import bundle as bundles
from streamdet.bundle import Bundle
from streamdet.errors import DataError, UsageError
from streamdet.scorer import Scorer
from streamdet_training import data, scores, streaming, tandem
from streamdet_training.data import Clip, Split
from streamdet_training.evaluate import (
    Entry,
    Scored,
    Section,
    View,
    Wanted,
    compare,
    new_sources,
    of_trials,
    score_with_bundle,
    without,
)
from streamdet_training.lines import LINES
from streamdet_training.tandem import AsvRates, Form

SPLITS: Final[dict[str, Split | None]] = {**{name: name for name in get_args(Split)}, "all": None}


class Asked(msgspec.Struct, frozen=True):
    """What the command line says."""

    bundles: Sequence[Path]
    scores: Sequence[Path]
    manifests: Sequence[str]
    form: str = "csv"
    splits: Sequence[str] = ("test",)
    through: Sequence[str] = ()
    streaming: bool = False
    adaptive: bool = False
    """Whether the hop of simulated calls is."""
    without: Sequence[str] = ()
    asv_scores: Path | None = None
    tdcf: str | None = None
    resamples: int = 0
    seed: int = 0


def run(asked: Asked) -> list[Section]:
    """Evaluate every entry on every split.

    Raises:
        UsageError: the options do not fit together.
        MissingError, DataError, BundleError: an input is not there, or not right; all of them are read first, since
            scoring takes minutes.
    """
    splits = [_split(name) for name in dict.fromkeys(asked.splits)]
    asv, tdcf = _tandem(asked)
    wanted = Wanted(resamples=asked.resamples, seed=asked.seed, asv=asv, tdcf=tdcf)
    for line in asked.through:
        if line not in LINES:
            raise UsageError.of("--through", line, f"one of {', '.join(LINES)}")
    loaded = [bundles.load(path) for path in asked.bundles]
    if not loaded and not asked.scores:
        loaded = [bundles.load(bundles.starter_path())]
    if not loaded and (asked.through or asked.streaming):
        option = "--through" if asked.through else "--streaming"
        raise UsageError.of(option, "only score files", "a bundle: recordings have to be scored for it")
    clips = {name: data.load(asked.form, asked.manifests, split) for name, split in splits}
    from_files = {name: [_from_file(path, clips[name]) for path in asked.scores] for name, _ in splits}
    views = {name: _views(asked, name, clips[name]) for name, _ in splits}
    scorers = list(zip(_names(loaded), (Scorer(bundle) for bundle in loaded), strict=True))
    sections = []
    for name, _ in splits:
        entries = [entry for title, scorer in scorers for entry in _scored(title, scorer, clips[name], asked)]
        entries += [entry for found in from_files[name] for entry in found]
        twice = [title for title, times in Counter(entry.name for entry in entries).items() if times > 1]
        if twice:
            raise UsageError.of("entries", twice[0], "each of them once, under a name of its own")
        sections.append(compare(name, entries, msgspec.structs.replace(wanted, views=views[name])))
    return sections


def _split(name: str) -> tuple[str, Split | None]:
    if name not in SPLITS:
        raise UsageError.of("--split", name, f"one of {', '.join(SPLITS)}")
    return name, SPLITS[name]


def _tandem(asked: Asked) -> tuple[AsvRates | None, Form | None]:
    """ASV rates and the form of the t-DCF: both or neither, since the forms must not be mixed up."""
    form = next((form for form in tandem.FORMS if form == asked.tdcf), None)
    if asked.tdcf is not None and form is None:
        raise UsageError.of("--tdcf", asked.tdcf, f"one of {', '.join(tandem.FORMS)}")
    if asked.asv_scores is None and form is not None:
        raise UsageError.of("--asv-scores", None, "the scores of a speaker verification, which the t-DCF needs")
    if asked.asv_scores is None:
        return None, None
    if form is None:
        raise UsageError.of("--tdcf", None, f"one of {', '.join(tandem.FORMS)}: the forms cannot be compared")
    return tandem.read_asv(asked.asv_scores), form


def _views(asked: Asked, name: str, clips: Sequence[Clip]) -> list[View]:
    found = []
    if name in ("dev", "test"):
        try:
            train = data.load(asked.form, asked.manifests, "train", classes=())
        except DataError:  # there is no train split to compare with, or it is not fit for training
            train = []
        found += new_sources(clips, train)
    return found + without(asked.without, clips)


def _names(loaded: Sequence[Bundle]) -> list[str]:
    """By name; where two bundles share one, with the first digits of their hashes."""
    times = Counter(bundle.manifest.name for bundle in loaded)
    return [
        bundle.manifest.name if times[bundle.manifest.name] == 1 else bundle.manifest.model_id for bundle in loaded
    ]  # fmt: skip


def _scored(title: str, scorer: Scorer, clips: Sequence[Clip], asked: Asked) -> Iterator[Entry]:
    """A bundle's entries: as it is, and over each line."""
    for line in (None, *dict.fromkeys(asked.through)):
        scored = of_trials(score_with_bundle(clips, scorer, line))
        found = _listened(scorer, clips, line, asked) if asked.streaming else None
        yield Entry(title if line is None else f"{title} through {line}", scored, scorer.manifest, found)


def _listened(scorer: Scorer, clips: Sequence[Clip], line: str | None, asked: Asked) -> streaming.Streaming:
    console = Console(stderr=True)
    with Status("calls", console=console) as status:
        return streaming.evaluate(
            clips,
            scorer.manifest,
            scorer.score,
            line=line,
            adaptive=asked.adaptive,
            resamples=asked.resamples,
            seed=asked.seed,
            step=status.update if console.is_terminal else lambda doing: None,  # noqa: ARG005 - named by its caller
        )


def _from_file(path: Path, clips: Sequence[Clip]) -> list[Entry]:
    return [
        Entry(name, [Scored(clip, llr) for clip, llr in zip(clips, llrs, strict=True)])
        for name, llrs in scores.read(path, clips).items()
    ]  # fmt: skip
