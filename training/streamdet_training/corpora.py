"""Public corpora, in the layouts that they are distributed in; docs/training.md draws them.

Every reader takes the corpus's folder and a split and returns that split's clips, or all of them for None. A corpus
without that split has none of its clips; `load` in data.py refuses only when nothing at all has any.
"""

import hashlib
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

from streamdet.errors import DataError, MissingError
from streamdet_training.clips import UNKNOWN, Clip, Label, Split, existing, label
from streamdet_training.rows import lines, table

Reader = Callable[[Path, Split | None], list[Clip]]

SPLITS: Final[tuple[Split, ...]] = ("train", "dev", "test")

# Names in hash order: below the first of these shares they train, up to the second they are dev, beyond it test.
TRAIN_SHARE: Final = 0.7
DEV_SHARE: Final = 0.85

# What libsndfile reads, by the end of a name: a folder may hold notes and pictures too.
AUDIO: Final = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"})


def deal(names: Iterable[str]) -> dict[str, Split]:
    """Give every name (of a speaker or a system) a split, for corpora that have none of their own.

    A name's place depends on its SHA-256 alone, so that a corpus may grow without its training voices turning up in
    test. Where there are three names or more no split stays empty; of two, one trains and one is dev.
    """
    ranked = sorted(set(names), key=lambda name: (_place(name), name))
    places = [_place(name) for name in ranked]
    train = min(max(bisect(places, TRAIN_SHARE), 1), max(1, len(ranked) - 2))
    dev = min(max(bisect(places, DEV_SHARE), train + 1), max(2, len(ranked) - 1))
    return {name: SPLITS[(at >= train) + (at >= dev)] for at, name in enumerate(ranked)}


def read_asvspoof2019_la(root: Path, split: Split | None = None) -> list[Clip]:
    """ASVspoof 2019 LA: lines of `SPEAKER FILE - ATTACK LABEL`; `test` is what the corpus calls eval."""
    if split is None:
        return [clip for each in SPLITS for clip in read_asvspoof2019_la(root, each)]
    part, ending = {"train": ("train", "trn"), "dev": ("dev", "trl"), "test": ("eval", "trl")}[split]
    protocol = root / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{part}.{ending}.txt"
    audio = root / f"ASVspoof2019_LA_{part}" / "flac"
    return [
        _clip(where, audio / f"{name}.flac", word, attack, speaker=speaker, source="asvspoof2019_la", split=split)
        for where, (speaker, name, _, attack, word) in lines(protocol, "speaker, file, -, attack, label")
    ]


def read_asvspoof2021(
    root: Path,
    split: Split | None = None,
    *,
    task: Literal["LA", "DF"],
    subset: Literal["eval", "progress", "hidden"] = "eval",
) -> list[Clip]:
    """ASVspoof 2021 LA or DF: `keys/{LA,DF}/CM/trial_metadata.txt`; one of its subsets, as `test`.

    The codec (LA) or compression (DF) is the channel.
    """
    if split not in {"test", None}:
        return []
    columns = {
        "LA": "speaker, trial, codec, transmission, attack, label, trim, subset",
        "DF": "speaker, trial, compression, source, attack, label, trim, subset, vocoder, task, team, gender, language",
    }[task]
    audio = _first(root / f"ASVspoof2021_{task}_eval" / "flac", root / "flac")
    clips = []
    for where, row in lines(root / "keys" / task / "CM" / "trial_metadata.txt", columns):
        speaker, name, channel, origin, attack, word, _, part = row[:8]
        # The organisers' scripts say hidden_track.
        if part not in {"eval", "progress", "hidden", "hidden_track"}:
            raise DataError.of(f"{where} subset", part, "eval, progress or hidden")
        if part.removesuffix("_track") == subset:
            source = origin if task == "DF" else "asvspoof2021_la"
            path = audio / f"{name}.flac"
            clips.append(_clip(where, path, word, attack, speaker, source=source, channel=channel, split="test"))
    return clips


def read_asvspoof5(root: Path, split: Split | None = None) -> list[Clip]:
    """ASVspoof 5, track 1: ten columns between spaces, whatever `.tsv` says, and no header; `test` is its eval."""
    if split is None:
        return [clip for each in SPLITS for clip in read_asvspoof5(root, each)]
    protocol, folder = {
        "train": ("ASVspoof5.train.tsv", "flac_T"),
        "dev": ("ASVspoof5.dev.track_1.tsv", "flac_D"),
        "test": ("ASVspoof5.eval.track_1.tsv", "flac_E_eval"),
    }[split]
    columns = "speaker, file, gender, codec, codec_q, codec_seed, attack_tag, attack_label, key, tmp"
    path = _first(root / protocol, root / "ASVspoof5_protocols" / protocol)
    clips = []
    for where, (speaker, name, _, codec, _, _, _, attack, word, _) in lines(path, columns):
        audio = root / folder / f"{name}.flac"
        clips.append(_clip(where, audio, word, attack, speaker, source="asvspoof5", channel=codec, split=split))
    return clips


def read_in_the_wild(root: Path, split: Split | None = None) -> list[Clip]:
    """In-the-Wild: `meta.csv` with file, speaker, label. All of it is test: nobody trains on it.

    The speaker of a spoof is who is imitated; the systems are not known.
    """
    if split not in {"test", None}:
        return []
    meta = _first(root / "meta.csv", root / "release_in_the_wild" / "meta.csv")
    return [
        _clip(where, meta.parent / row["file"], row["label"], UNKNOWN, row["speaker"], "in_the_wild", split="test")
        for where, row in table(meta, ("file", "speaker", "label"))
    ]


def read_mlaad(root: Path, split: Split | None = None) -> list[Clip]:
    """MLAAD: `fake/LANGUAGE/MODEL/meta.csv`, pipes between its columns. All spoof; the model is the system.

    A model is in one split in all its languages (`deal`).
    """
    metas = sorted(root.glob("fake/*/*/meta.csv"))
    if not metas:
        raise MissingError.of("MLAAD", str(root), "a folder with fake/LANGUAGE/MODEL/meta.csv in it")
    splits = deal(meta.parent.name for meta in metas)
    clips = []
    for meta in metas:
        system = meta.parent.name
        if split in {splits[system], None}:
            for where, row in table(meta, ("path",), "|"):
                name = Path(row["path"]).name  # the rest of it is where the authors had it
                audio = _first(meta.parent / "wavs" / name, meta.parent / name)
                clips.append(_clip(where, audio, "spoof", system, source="mlaad", split=splits[system]))
    return clips


def read_wavefake(root: Path, split: Split | None = None) -> list[Clip]:
    """WaveFake: `generated_audio/CORPUS_VOCODER/*.wav`, no protocol. All spoof; the folder's name is the system.

    A vocoder is in one split, whichever corpus it was trained on (`deal`).
    """
    folders = sorted(path for path in (root / "generated_audio").glob("*") if path.is_dir())
    if not folders:
        raise MissingError.of("WaveFake", str(root), "a folder with generated_audio/CORPUS_VOCODER in it")
    vocoders = {folder: folder.name.removeprefix("ljspeech_").removeprefix("jsut_") for folder in folders}
    splits = deal(vocoders.values())
    return [
        Clip(path=path, label="spoof", system=folder.name, source="wavefake", split=splits[vocoder])
        for folder, vocoder in vocoders.items()
        if split in {splits[vocoder], None}
        for path in sorted(folder.glob("*.wav"))
    ]


def read_folders(root: Path, split: Split | None = None) -> list[Clip]:
    """Two folders, `bonafide/` and `spoof/`: their sub-folders are speakers and systems.

    Where there are folders `train/`, `dev/` or `test/` with these two in them, they are the splits. Elsewhere speakers
    and systems are dealt out (`deal`), and of recordings that lie in no sub-folder each one by its own name.
    """
    declared = {each: root / each for each in SPLITS if (root / each).is_dir()}
    if declared:
        return [clip for each in declared if split in {each, None} for clip in _pair(declared[each], each)]
    return [clip for clip in _pair(root, None) if split in {clip.split, None}]


def _pair(root: Path, split: Split | None) -> Iterator[Clip]:
    """Clips of one pair of folders; without a split given, dealt out class by class."""
    kinds: tuple[Label, ...] = ("bonafide", "spoof")
    if not any((root / kind).is_dir() for kind in kinds):
        raise MissingError.of("folders", str(root), "a folder with bonafide/ and spoof/ in it")
    for kind in kinds:
        paths = sorted(path for path in (root / kind).rglob("*") if path.suffix.lower() in AUDIO and path.is_file())
        within = [path.relative_to(root / kind).parts for path in paths]
        splits = deal(parts[0] for parts in within)
        for path, parts in zip(paths, within, strict=True):
            voice = parts[0] if len(parts) > 1 else UNKNOWN
            speaker, system = (voice, UNKNOWN) if kind == "bonafide" else (UNKNOWN, voice)
            yield Clip(path=path, label=kind, speaker=speaker, system=system, split=split or splits[parts[0]])


def _clip(
    where: str,
    path: Path,
    word: str,
    attack: str,
    speaker: str = UNKNOWN,
    source: str = UNKNOWN,
    channel: str = UNKNOWN,
    *,
    split: Split,
) -> Clip:
    """A row's clip; protocols name the attack of bona fide speech in several ways, all of which mean none."""
    kind = label(word, where)
    return Clip(
        path=existing(path, where),
        label=kind,
        speaker=speaker,
        system=attack if kind == "spoof" else UNKNOWN,
        source=source,
        channel=channel,
        split=split,
    )


def _first(*places: Path) -> Path:
    """Return the first that exists, or else the first, for an error to name."""
    return next((place for place in places if place.exists()), places[0])


def _place(name: str) -> float:
    """Where a name stands between 0 and 1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


READERS: Final[dict[str, Reader]] = {
    "asvspoof2019_la": read_asvspoof2019_la,
    "asvspoof2021_la": partial(read_asvspoof2021, task="LA"),
    "asvspoof2021_la_progress": partial(read_asvspoof2021, task="LA", subset="progress"),
    "asvspoof2021_la_hidden": partial(read_asvspoof2021, task="LA", subset="hidden"),
    "asvspoof2021_df": partial(read_asvspoof2021, task="DF"),
    "asvspoof2021_df_progress": partial(read_asvspoof2021, task="DF", subset="progress"),
    "asvspoof2021_df_hidden": partial(read_asvspoof2021, task="DF", subset="hidden"),
    "asvspoof5": read_asvspoof5,
    "in_the_wild": read_in_the_wild,
    "mlaad": read_mlaad,
    "wavefake": read_wavefake,
    "folders": read_folders,
}
