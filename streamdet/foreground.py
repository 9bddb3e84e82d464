"""The daemon as a process in the foreground: its settings for itself, its signals, and how it ends."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

import uvloop
import zmq

from streamdet import logs, secrecy
from streamdet.acceptor import open_more_files
from streamdet.activation import Inherited
from streamdet.config import Config
from streamdet.daemon import Daemon
from streamdet.errors import DeviceError
from streamdet.notify import notify

log = logging.getLogger(__name__)

# A thread that waits for the interpreter asks whoever has it to give way after this long. With Python's own 5 ms a loop
# that is busy with frames makes a batch twenty times as long, since each step of its preparation waits for its turn;
# and the other way round. Nothing is lost where nobody waits.
SWITCH_S: Final = 1e-4


def run(config: Config, read: Callable[[], Config] | None = None) -> int:
    """Run the daemon in the foreground until a signal ends it; a second one ends the process at once, with code 130.

    Args:
        config: the settings.
        read: reads them again, when SIGHUP or a control request asks for it.

    Returns:
        the process's exit code: 0, after a drain.

    Raises:
        StreamdetError: it could not start, or scoring broke.
    """
    logs.start(config.daemon.log_format, config.daemon.log_level)
    if config.daemon.dumpable:
        log.warning("daemon.dumpable: core dumps and tracers can see the calls' audio")
    else:
        secrecy.forbid_dumps()
    secrecy.overwrite_freed()
    sys.setswitchinterval(SWITCH_S)
    open_more_files()
    try:
        at_work = uvloop.run(_run(config, read))
        log.info("ended")
    except DeviceError as error:
        _leave(error.exit_code)
    except MemoryError:
        _leave_without_memory()
    finally:
        logs.flush()
    if at_work:
        _leave(0)
    # Closed sockets still hold messages, which would die with the process; this waits for them, LINGER_MS at most.
    zmq.Context.instance().term()
    return 0


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Hear of an error that a callback of the loop did not expect; one for want of memory ends the process.

    What was half done then is in no state to go on with, and a drain wants memory too.
    """
    if isinstance(context.get("exception"), MemoryError):
        _leave_without_memory()
    loop.default_exception_handler(context)


def _leave_without_memory() -> NoReturn:
    log.critical("no memory left: ending, to be started again")
    logs.flush()
    os._exit(DeviceError.exit_code)


def _leave(code: int) -> NoReturn:
    """End the process whatever its threads are at, and without what a broken device would make of an orderly end."""
    zmq.Context.instance().term()
    logs.flush()
    os._exit(code)


async def _run(config: Config, read: Callable[[], Config] | None = None) -> bool:
    """Serve; return whether a thread is still at work."""
    daemon = Daemon(config, Inherited.of_environment(), read=read)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unexpected)

    def interrupted() -> None:
        if daemon.stopping:
            # The second signal: somebody is in a hurry. A thread that hangs in a run can be ended in no other way.
            log.warning("ended before the drain was over")
            logs.flush()
            os._exit(130)
        daemon.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, interrupted)
    loop.add_signal_handler(signal.SIGHUP, daemon.hang_up)
    await daemon.serve(_announce)
    return daemon.at_work


def _announce() -> None:
    notify(READY=1)
    log.info("ready")
