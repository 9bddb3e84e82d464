"""What the cache of decoded audio saves: `python tests/bench/decoded.py CORPUS [--clips 1000]`.

Reads the train split of CORPUS/manifest.csv, a clip at a time in random order, and prints CPU time a clip: decoded from
its file each time, from the cache of a new process (which checks it once), and from the cache again.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from streamdet_training import data, recordings
from streamdet_training.recordings import Recordings

CROP_S = 4


def cropped(read, paths: list[Path]) -> float:
    """Milliseconds of CPU a clip, with a crop copied out as training does."""
    began_s = time.process_time()
    for path in paths:
        samples, rate_hz = read(path)
        samples[: CROP_S * rate_hz].astype(np.float32)
    return 1000 * (time.process_time() - began_s) / len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--clips", type=int, default=1000)
    given = parser.parse_args()
    clips = data.load("csv", [given.corpus / "manifest.csv"], "train")
    order = np.random.default_rng(1).permutation(len(clips))[: given.clips]
    paths = [clips[at].path for at in order]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        cropped(recordings.read, paths)  # files into the page cache, for both sides alike
        decoded = cropped(recordings.read, paths)
        filled = cropped(Recordings(cache).read, paths)
        reader = Recordings(cache)
        checked, again = cropped(reader.read, paths), cropped(reader.read, paths)
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    flac = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} clips, {flac / 1e6:.1f} MB of files, {size / 1e6:.1f} MB of cache; ms of CPU a clip:")
    print(f"decoded {decoded:.2f}, while filling the cache {filled:.2f}, first {checked:.2f}, again {again:.2f}")


if __name__ == "__main__":
    main()
