"""Kill a training run with SIGKILL at every call that changes the disk, and see how it goes on.

A program of its own: it forks, once everything is imported, a process for each kill.

    python kills.py RECIPE MANIFEST FOLDER
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from streamdet.errors import MissingError
from streamdet_training import checkpoint, recipe, run
from streamdet_training.terminal import settle
from streamdet_training.train import train

RESULT = ("adapter/adapter_model.safetensors", "head.safetensors", "backbone/model.safetensors")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(last: int) -> None:
    """Let so many changes of the disk happen, and kill in place of the next; of a checkpoint, half stays."""
    done = 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal done
            if done == last:
                kill()
            done += 1
            return call(*args, **kwargs)

        return wrapper

    write = checkpoint.save_file

    def torn(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, str]) -> None:
        nonlocal done
        write(tensors, path, header)
        if done == last:
            os.truncate(path, path.stat().st_size // 2)
            kill()
        done += 1

    checkpoint.save_file = torn
    for module, name in ((os, "fsync"), (os, "replace"), (os, "rmdir"), (os, "mkdir"), (os, "unlink")):
        setattr(module, name, counted(getattr(module, name)))


def forked(work: Callable[[], object]) -> int:
    """Exit code of a process that does `work`, negative where a signal ended it."""
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(out: Path) -> dict[str, bytes]:
    found = {name: (out / name).read_bytes() for name in RESULT}
    # Times are in the header, so of this file the tensors are compared.
    parts, _ = checkpoint.load(out / run.CHECKPOINT)
    for part, tensors in parts.items():
        found |= {f"{part}/{name}": value.numpy().tobytes() for name, value in tensors.items()}
    return found


def weights_are_whole(out: Path) -> None:
    """A killed run has weights that load, or says that it has none yet."""
    try:
        run.load_run(out)
    except MissingError:
        assert not (out / run.CHECKPOINT).exists() or not (out / run.HEAD).exists()


def main() -> None:
    path, manifest, folder = (Path(arg) for arg in sys.argv[1:])
    settle()
    torch.set_num_threads(1)
    how = recipe.load(path)
    # Here and not in a fork: libraries import much of themselves when they are first used, and forks then share it.
    train(how, folder / "whole", data=[manifest])
    expected = contents(folder / "whole")
    kills = 0
    while True:
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)

        def doomed(out: Path = out, last: int = kills) -> None:
            deadly(last)
            train(how, out, data=[manifest])

        if (code := forked(doomed)) == 0:
            break
        assert code == -signal.SIGKILL, code
        assert forked(lambda out=out: weights_are_whole(out)) == 0, kills
        begun = (out / run.RECIPE).is_file()
        assert forked(lambda out=out, begun=begun: train(how, out, data=[manifest], resume=begun)) == 0, kills
        found = contents(out)
        assert found.keys() == expected.keys(), kills
        assert found == expected, (kills, [name for name in found if found[name] != expected[name]])
        left = {name.name for name in out.iterdir()} - {name.name for name in (folder / "whole").iterdir()}
        assert not left, (kills, left)
        kills += 1
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main()
