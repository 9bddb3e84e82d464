"""`streamdet check`: would the daemon start?"""

import typer

from streamdet.cli.options import BundlePath, ConfigFile, Settings, read_config


def check(config: ConfigFile = None, set_: Settings = None, bundle: BundlePath = None) -> None:
    """Verify the settings and the bundle, load and warm up the model; opens no port."""
    from streamdet import bundle as bundles
    from streamdet.addresses import check_endpoints
    from streamdet.engine import Engine
    from streamdet.scorer import Scorer

    settings = read_config(config, set_, bundle)
    check_endpoints(settings)
    loaded = bundles.chosen(settings.bundle)
    adaptive = settings.scoring.hop == "adaptive"
    Engine(loaded.manifest, lambda _: None, adaptive=adaptive)
    scorer = Scorer.of(loaded, settings.scoring, at_once=True)
    taken_ms = scorer.warm_up()
    audio, decision = loaded.manifest.audio, loaded.manifest.decision
    left_s = (loaded.manifest.model.left_samples or 0) / audio.rate_hz
    inside = (
        f", in {loaded.manifest.blocks} blocks that hear {left_s:g} s before them" if loaded.manifest.blocks else ""
    )
    runs = ", ".join(f"{size}: {ms:.1f}" for size, ms in taken_ms.items())
    typer.echo(f"bundle     {loaded.manifest.model_id} ({loaded.path})")
    every = f"{audio.hop_s / 2:g} to {2 * audio.hop_s:g}" if adaptive else f"{audio.hop_s:g}"
    typer.echo(f"window     {audio.window_s:g} s every {every} s at {audio.rate_hz} Hz{inside}")
    typer.echo(f"provider   {scorer.provider}, ms a batch of {runs}")
    upper = f"{decision.upper_95:g} with 95 % confidence"
    beyond = ", extrapolated" if decision.extrapolated else ""
    typer.echo(f"alarms     {decision.false_alarms_per_hour:g} false ones an hour expected, under {upper}{beyond}")
    for name, address in settings.endpoints:
        if name != "insecure":
            typer.echo(f"{name:<10} {', '.join(address) if isinstance(address, tuple) else address or 'off'}")
    typer.echo("ok")
