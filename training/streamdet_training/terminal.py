"""What a person at a terminal should see of a run: our own lines, and none of the libraries' small talk."""

import logging
import warnings


def narrate() -> None:
    """Log our packages from INFO on, everybody else from WARNING on."""
    logging.basicConfig(level="WARNING", format="%(message)s")
    for package in ("streamdet", "streamdet_training", "streamdet_export"):
        logging.getLogger(package).setLevel("INFO")


def settle() -> None:
    """The same, without the bars and warnings of the libraries that train."""
    from transformers.utils.logging import disable_progress_bar  # calibration narrates too, and has no torch

    narrate()
    disable_progress_bar()  # type: ignore[no-untyped-call] # transformers has no types for it
    # transformers warns of its own property whenever peft looks at it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
