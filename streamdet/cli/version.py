"""`streamdet version`."""

import importlib.metadata
import platform

import typer


def version() -> None:
    """Print the versions that a bug report should have."""
    typer.echo(f"streamdet {importlib.metadata.version('streamdet')}")
    typer.echo(f"python {platform.python_version()}")
    for package in ("onnxruntime-gpu", "onnxruntime", "pyzmq", "numpy", "torch"):
        try:
            typer.echo(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two runtimes, and torch, are not there on most machines
