"""`backlight retina`: simulate a retina, fit a network to its spikes, and find the modes that drive its cells."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.cli.console import LINE_EVERY
from backlight.cli.options import Device, Format, Json, Kind, OnDevice

retina = typer.Typer(
    name="retina",
    help="Models of the retina: simulated recordings, networks fitted to spikes, and modes of interneurons.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

METHOD = "ThresholdSAE:retina_revived"  # that of `analyse_retina`, which is imported on use

Recorded = Annotated[Path, typer.Argument(metavar="RECORDING", help="A file of `retina simulate`, or one like it.")]


@retina.command()
def simulate(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The recording, a .safetensors file.")],
    stimulus: Annotated[
        str, typer.Option(help="natural_movie, white_noise, moving_bars, moving_objects, flashes; A,B in turn.")
    ] = "natural_movie",
    cells: Annotated[int, typer.Option(min=1, help="Ganglion cells.")] = 12,
    types: Annotated[str, typer.Option(help="Of ON, OFF, ON-OFF, motion, in turn.")] = "ON,OFF,ON-OFF,motion",
    windows: Annotated[
        int, typer.Option(min=2, help="Responses a trial: frames of the movie, less the first ones.")
    ] = (10_000),
    frames: Annotated[int, typer.Option(min=8, help="Frames that a response depends on.")] = 40,
    size: Annotated[int, typer.Option(min=4, help="Pixels of a side.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Trials; two or more give a noise ceiling.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the retina: places and directions of cells.")] = 0,
    movie_seed: Annotated[int, typer.Option(min=0, help="Of the movie and the spikes.")] = 0,
    json: Json = False,
) -> None:
    """Record spikes of a retina whose wiring is known."""
    from backlight.cli.console import print_json, say
    from backlight.data.retina_stimuli import stimulus as shown
    from backlight.retina.recording import noise_ceiling
    from backlight.retina.simulator import RetinaSimulator

    width = max(0.6, size / 50)
    simulator = RetinaSimulator(
        listed(types), cells=cells, size=(size, size), frames=frames, subunit=width, pool=2.5 * width, seed=seed
    )
    movie = shown(listed(stimulus), windows + frames - 1, (size, size), seed=movie_seed)
    recording = simulator.record(movie, repeats, movie_seed)
    recording.save(out)
    ceiling = noise_ceiling(recording.counts).tolist() if repeats > 1 else None
    mean = float(recording.response.mean())
    say(f"{cells} cells, {windows} windows, {repeats} trials, {mean:.3g} spikes a frame -> {out}")
    if json:
        print_json({"file": str(out), "types": simulator.types, "mean_count": mean, "noise_ceiling": ceiling})


@retina.command()
def fit(
    recording: Recorded,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Checkpoints, network and report.")],
    test: Annotated[Path | None, typer.Option(metavar="RECORDING", help="Another movie, to be scored on.")] = None,
    channels: Annotated[int, typer.Option(min=1, help="Channels of both layers of interneurons.")] = 8,
    kernels: Annotated[str, typer.Option(help="Widths of the filters of the two layers.")] = "15,11",
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation of the noise in training.")] = 0.05,
    epochs: Annotated[int, typer.Option(min=1, help="The most passes over the movie.")] = 50,
    patience: Annotated[
        int, typer.Option(min=1, help="Passes without a better held-out loss, after which it ends.")
    ] = 8,
    batch_size: Annotated[int, typer.Option(min=2, help="Windows of an update.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    weight_penalty: Annotated[float, typer.Option(min=0, help="Times the mean square of the filters.")] = 0.0,
    held_out: Annotated[float, typer.Option(help="The share of the movie, at its end, that stops the fit.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and noise.")] = 0,
    device: OnDevice = Device.auto,
    json: Json = False,
) -> None:
    """Fit a network to a recording; the same command goes on where it was stopped."""
    import torch

    from backlight.cli.console import print_json, say
    from backlight.errors import InputError
    from backlight.retina.fitting import FitSettings, fit_retina, score_retina
    from backlight.retina.recording import Recording

    widths = listed(kernels)
    if len(widths) != 2 or not all(one.isdecimal() for one in widths):
        raise InputError(f"kernels are two widths in pixels, as 15,11, got {kernels!r}")
    settings = FitSettings(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_penalty=weight_penalty,
        held_out=held_out, patience=patience, seed=seed,
    )  # fmt: skip
    others = None if test is None else Recording.load(test)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device is Device.auto else device.value

    def tell(e: Any) -> None:
        say(f"epoch {e.number} of {e.total}: loss {e.loss:.4f}, held out {e.held_out_loss:.4f}, "
            f"r {e.held_out_correlation:.3f}, best {e.best}")  # fmt: skip

    found = fit_retina(
        Recording.load(recording), settings=settings, folder=out, progress=tell, device=where,
        channels=(channels, channels), kernels=tuple(map(int, widths)), noise=noise,
    )  # fmt: skip
    record: dict[str, Any] = {"folder": str(out), "epochs": len(found.history), "best": found.history[-1].best}
    record["held_out_correlation"] = found.history[found.history[-1].best - 1].held_out_correlation
    if others is not None:
        record["test"] = score_retina(found.network, others).record()
        shares = [one for one in record["test"]["share"] or [] if one is not None]
        told = f", {sum(shares) / len(shares):.0%} of the noise ceiling" if shares else ""
        r = sum(record["test"]["correlation"]) / len(record["test"]["correlation"])
        say(f"test movie: r {r:.3f}{told}")
    print_json(record) if json else say(f"{len(found.history)} epochs, the best {record['best']} -> {out}")


@retina.command()
def analyse(
    network: Annotated[Path, typer.Argument(metavar="NETWORK", help="A folder of `retina fit`, or a checkpoint.")],
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="The movie that modes are fitted on.")],
    held_out: Annotated[Path, typer.Argument(metavar="HELD-OUT", help="The movie that they are read on.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Stores, modes, figure.")] = Path("out"),
    method: Annotated[str, typer.Option(help="A decomposition, or NAME:PRESET.")] = METHOD,
    modes: Annotated[str | None, typer.Option(metavar="N", help="A number, or a multiple of channels: 10x.")] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the method.")] = None,
    after: Annotated[bool, typer.Option("--after", help="Read layers after their nonlinearity.")] = False,
    activations: Annotated[bool, typer.Option("--activations", help="Of activations, as a control.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Of Integrated Gradients.")] = 20,
    shrinkage: Annotated[float | None, typer.Option(help="Of the covariance [default: Ledoit and Wolf's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    format: Format = Kind.png,
    json: Json = False,
) -> None:
    """Modes of contributions to surprisal, clusters of cells, and a figure."""
    from backlight.cli.console import print_json, say
    from backlight.cli.decomposition import typed
    from backlight.cli.outputs import output_folder, slug
    from backlight.decompositions import decomposition
    from backlight.models.retina_checkpoints import load_retina
    from backlight.retina.analysis import SITES, SITES_AFTER, analyse_retina
    from backlight.retina.fitting import NETWORK
    from backlight.retina.recording import Recording
    from backlight.viz.figures import save_figure
    from backlight.viz.retina_figures import retina_figure

    settings = typed(decomposition(method.partition(":")[0]), set or [])
    found = analyse_retina(
        load_retina(network / NETWORK if network.is_dir() else network),
        Recording.load(recording),
        Recording.load(held_out),
        output_folder(out),
        method=method,
        modes=int(modes) if modes is not None and modes.isdecimal() else modes,
        sites=SITES_AFTER if after else SITES,
        quantity="activations" if activations else "contributions",
        n_steps=steps,
        shrinkage="ledoit_wolf" if shrinkage is None else shrinkage,
        seed=seed,
        progress=tell_at_times(),
        **settings,
    )
    named = ["retina", *([slug(method)] if method != METHOD else []), *(["activations"] if activations else [])]
    figure = out / f"{'-'.join(named)}.{format.value}"
    save_figure(retina_figure(found), figure)
    types = found.types(seed=seed)
    records = [one.record() | ({"types": types[site].record()} if types else {}) for site, one in found.sites.items()]
    for one in records:
        say(described(one))
        if not one["alive"] and method != METHOD:
            say("no mode is on: the default method revives modes that are off, see docs/retina.md")
    say(f"figure -> {figure}")
    if json:
        print_json({"sites": records, "figure": str(figure)})


def described(one: dict[str, Any]) -> str:
    """The modes of a site in a line, from their record."""
    r2 = "-" if one["r2_held_out_movie"] is None else f"{one['r2_held_out_movie']:.3f}"
    told = f", adjusted Rand index with the types {one['types']['index']:.2f}" if "types" in one else ""
    return (
        f"{one['site']}: {one['alive']} of {one['modes']} modes on, {one['l0']:.3g} a frame, R2 {r2} on the held-out "
        f"movie, {len({*one['clusters']})} clusters of cells{told}"
    )


def tell_at_times() -> Callable[[str, Any], None]:
    """A line of news on stderr at most every `LINE_EVERY` seconds: windows that are extracted, passes of a fit."""
    from backlight.cli.console import say
    from backlight.store.extraction import Progress

    told = time.monotonic()

    def tell(name: str, news: Any) -> None:
        nonlocal told
        if time.monotonic() - told < LINE_EVERY:
            return
        told = time.monotonic()
        if isinstance(news, Progress):
            rate = f", {news.rate:.3g} a second" if news.rate else ""
            say(f"{name} movie: {news.done} of {news.total} windows{rate}")
        else:
            say(f"{name}: pass {news.number} of {news.total}, {news.alive} of {news.modes} modes on")

    return tell


def listed(text: str) -> list[str]:
    """A comma list, in its order, a name as often as it stands there."""
    return [part.strip() for part in text.split(",") if part.strip()]
