"""`streamdet top`: every track and how the daemon is, live, sorted by what you press."""

import contextlib
import sys
import time
from typing import Annotated, Any, Final, get_args

import msgspec
import typer
import zmq
from rich.console import Console
from rich.live import Live
from rich.text import Text

from streamdet.cli import keyboard
from streamdet.cli.board import Board, Sort, View
from streamdet.cli.options import AsJson, ConfigFile, IdentityFile, Settings, read_config, read_identity
from streamdet.cli.status import ask, asking
from streamdet.cli.summary import flat, summary
from streamdet.cli.tail import REDRAW_S, subscribed
from streamdet.errors import ProtocolError, UsageError
from streamdet.keys import Identity
from streamdet.wire import verdicts

# How often the daemon is asked for all tracks: a thousand of them are 300 kB and some milliseconds of its loop.
ASK_EVERY_S: Final = 1.0
# An answer that is so old (s) is not how things are.
STALE_S: Final = 5.0
# Messages taken before the screen and the keyboard have their turn again.
TURN: Final = 256
SORTED_BY: Final[dict[str, Sort]] = {"s": "state", "p": "score", "l": "lag", "k": "skips", "d": "duration", "n": "name"}
HELP: Final = "q quit  s state  p P(spoof)  l lag  k skips  d duration  n name  r reverse  / filter  ↑↓ scroll"
PAGE: Final = 10

Address = Annotated[str | None, typer.Option("--address", help="Verdicts address; without one, the config's.")]
Control = Annotated[str | None, typer.Option("--control", help="Control address; without one, the config's.")]
SortBy = Annotated[str, typer.Option("--sort", help=f"First order: {', '.join(get_args(Sort))}.")]
Match = Annotated[str, typer.Argument(help="Only calls whose ids have this in them.")]


def top(
    match: Match = "",
    config: ConfigFile = None,
    set_: Settings = None,
    address: Address = None,
    control: Control = None,
    sort: SortBy = "state",
    json: AsJson = False,
    identity: IdentityFile = None,
) -> None:
    """Watch every track and the daemon's health; on a terminal until you press q, else once."""
    if sort not in get_args(Sort):
        raise UsageError.of("--sort", sort, f"one of {', '.join(get_args(Sort))}")
    who = read_identity(identity)
    screen = Screen(View(sort=sort, match=match))  # type: ignore[arg-type]  # it is one of them
    endpoints = None if address and control else read_config(config, set_).endpoints
    asked = control or (endpoints.control if endpoints else "")
    if sys.stdout.isatty() and not json:
        live(screen, address or (endpoints.verdicts if endpoints else ""), asked, who)
        return
    screen.answered(ask(asked, {"op": "status"}, who), time.monotonic())
    for line in screen.once(as_json=json):
        print(line)  # noqa: T201 - data goes to stdout


class Screen:
    """What is shown, as a function of what was heard, answered and pressed."""

    def __init__(self, view: View) -> None:
        """Begin with nothing heard."""
        self.board: Final = Board()
        self.view: Final = view
        self.over = False
        self._answer: dict[str, Any] | None = None
        self._answered_at_s = 0.0
        self._typing: str | None = None
        """The filter while it is typed."""

    def answered(self, answer: dict[str, Any], now_s: float) -> None:
        """Take the daemon's answer to `status`."""
        self._answer, self._answered_at_s = answer, now_s
        self.board.know(answer["tracks"], now_s)

    def press(self, key: str) -> None:
        """Do what a key is for."""
        if self._typing is not None:
            self._type(self._typing, key)
        elif key == "q":
            self.over = True
        elif key in SORTED_BY:
            self.view.sort, self.view.above = SORTED_BY[key], 0
        elif key == "r":
            self.view.backwards = not self.view.backwards
        elif key == "/":
            self._typing = self.view.match
        elif key == "escape":
            self.view.match = ""
        else:
            steps = {"up": -1, "down": 1, "page up": -PAGE, "page down": PAGE, "home": -self.view.above}
            self.view.above += steps.get(key, 0)  # the board keeps it within what there is

    def render(self, now_s: float, height: int) -> Any:
        """Draw."""
        fresh = self._answer is not None and now_s - self._answered_at_s < STALE_S
        # Who may read verdicts but not control has no answer, and sees what verdicts and heartbeats tell.
        head = summary(self._answer) if fresh and self._answer else [self.board.headline(now_s)]
        return self.board.render(now_s, height, self.view, [*head, self._foot()])

    def once(self, *, as_json: bool) -> list[str]:
        """Say everything in lines."""
        answer = self._answer
        assert answer is not None
        if as_json:
            order = {key: number for number, (key, _) in enumerate(self.board.chosen(self.view))}
            tracks = [track for track in answer["tracks"] if (track["stream"], track["channel"]) in order]
            tracks.sort(key=lambda track: order[track["stream"], track["channel"]])
            return [msgspec.json.encode(one).decode() for one in flat(answer | {"tracks": tracks})]
        console = Console(width=max(120, Console().width))
        with console.capture() as capture:
            console.print(self.board.render(self._answered_at_s, 1 << 30, self.view, [*summary(answer), Text()]))
        return [line.rstrip() for line in capture.get().splitlines()]

    def _type(self, text: str, key: str) -> None:
        if key == "escape":
            self._typing, self.view.match = None, ""
        elif key == "enter":
            self._typing = None
        else:
            self._typing = text[:-1] if key == "backspace" else text + key if len(key) == 1 else text
            self.view.match = self._typing

    def _foot(self) -> Text:
        if self._typing is not None:
            return Text(f"filter: {self._typing}█", style="bold")
        line = Text(f"by {self.view.sort}{', backwards' if self.view.backwards else ''}", no_wrap=True)
        if self.view.match:
            line.append(f", calls with {self.view.match!r}")
        return line.append(f"    {HELP}", style="dim")


def live(screen: Screen, heard_at: str, asked_at: str, who: Identity | None) -> None:
    """Show the screen until `q` is pressed."""
    with (
        subscribed(heard_at, [""], who) as heard,
        asking(asked_at, who) as asked,
        keyboard.pressed() as keys,
        Live(console=Console(), auto_refresh=False, screen=True) as shown,
    ):
        poller = zmq.Poller()
        for source in (heard, asked, keys):
            if source is not None:
                poller.register(source, zmq.POLLIN)
        drawn_s = asked_s = 0.0
        while not screen.over:
            now_s = time.monotonic()
            if now_s - asked_s >= ASK_EVERY_S:
                with contextlib.suppress(zmq.Again):  # a daemon that is gone has not taken the last one yet
                    asked.send(msgspec.json.encode({"op": "status"}), zmq.NOBLOCK)
                asked_s = now_s
            ready = dict(poller.poll(int(REDRAW_S * 1000)))
            if keys is not None and keys in ready:
                for key in keyboard.read(keys):
                    screen.press(key)
            _hear(screen, heard, asked)
            if keys in ready or now_s - drawn_s >= REDRAW_S:
                shown.update(screen.render(now_s, shown.console.height), refresh=True)
                drawn_s = now_s


def _hear(screen: Screen, heard: "zmq.Socket[bytes]", asked: "zmq.Socket[bytes]") -> None:
    """Take what has come."""
    now_s = time.monotonic()
    for _ in range(TURN):
        if not heard.poll(0):
            break
        with contextlib.suppress(ProtocolError):
            screen.board.update(verdicts.parse(heard.recv_multipart()), now_s)
    while asked.poll(0):
        answer = msgspec.json.decode(asked.recv())
        if answer.get("ok"):
            screen.answered(answer, now_s)
