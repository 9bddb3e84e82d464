"""`streamdet score`: recordings through the same engine as live calls."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from streamdet.cli.board import COLOURS, sparkline
from streamdet.cli.options import AsJson, BundlePath, ConfigFile, Settings, read_config
from streamdet.errors import StreamdetError
from streamdet.records import Event, Verdict

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="WAV, FLAC, Ogg, MP3, ... with 1 to 8 channels.")]


def score(
    files: Files, config: ConfigFile = None, set_: Settings = None, bundle: BundlePath = None, json: AsJson = False
) -> None:
    """Score recordings: a timeline and a final verdict for each channel."""
    from streamdet import bundle as bundles
    from streamdet.replay import replay
    from streamdet.scorer import Scorer

    settings = read_config(config, set_, bundle)
    loaded = bundles.chosen(settings.bundle)
    scorer = Scorer.of(loaded, settings.scoring)
    failed: StreamdetError | None = None
    for file in files:
        try:
            said = replay(
                file, scorer, prior_spoof=settings.decision.prior_spoof, adaptive=settings.scoring.hop == "adaptive"
            )
        except StreamdetError as error:
            typer.echo(f"streamdet: {error}", err=True)  # one bad file of many is no reason to stop
            failed = error
            continue
        verdicts = [record for record in said if isinstance(record, Verdict)]
        if json:
            for verdict in verdicts:
                typer.echo(msgspec.json.encode({**msgspec.to_builtins(verdict), "file": str(file)}).decode())
        else:
            _show(Console(), file, verdicts, said[-1])
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def _show(console: Console, file: Path, verdicts: Sequence[Verdict], close: Event | Verdict) -> None:
    def say(text: Text) -> None:
        console.print(text, soft_wrap=True)  # whoever reads the pipe wants whole lines

    channels = sorted({verdict.channel for verdict in verdicts})
    for channel in channels:
        say(Text(str(file) + (f", channel {channel}" if len(channels) > 1 else ""), style="bold"))
        mine = [verdict for verdict in verdicts if verdict.channel == channel]
        for verdict in mine:
            say(_line(verdict))
        say(_summary(mine))
    if not channels and isinstance(close, Event):
        say(Text(f"{file}: too short to say anything ({close.detail['seconds']:.2f} s)"))


def _line(verdict: Verdict) -> Text:
    p_spoof = "   –" if verdict.p_spoof is None else f"{verdict.p_spoof:.2f}"
    heard = "too little speech" if verdict.llr is None else f"LLR {verdict.llr:+6.2f}"
    bar = "·" if verdict.llr is None else sparkline([verdict.rolling_llr])
    text = f"{verdict.end_s:7.1f} s  {bar}  {verdict.state:<9}  P(spoof) {p_spoof}  {heard}"
    return Text(text, style=COLOURS[verdict.state])


def _summary(verdicts: Sequence[Verdict]) -> Text:
    last = verdicts[-1]
    alarm_s = next((verdict.end_s for verdict in verdicts if verdict.state == "spoof"), None)
    parts = [
        f"verdict: {last.state}",
        "P(spoof) –" if last.p_spoof is None else f"P(spoof) {last.p_spoof:.2f}",
        f"{last.total_speech_s:.1f} s of speech in {last.end_s:.1f} s",
        "no alarm" if alarm_s is None else f"alarm at {alarm_s:.1f} s",
    ]
    return Text("  " + ", ".join(parts), style=f"bold {COLOURS[last.state]}")
