"""`backlight app`: the interactive app on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from backlight.cli import console
from backlight.cli.options import Device, OnDevice
from backlight.errors import MissingExtraError

LOCAL = ("127.0.0.1", "localhost", "::1")


def start_app(
    host: Annotated[str, typer.Option(help="The address to listen at; the default is this machine alone.")] = LOCAL[0],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: the first free one from 7860 on.")] = 7860,
    model: Annotated[str, typer.Option("--model", "-m", help="What a new user sees first.")] = "efficientnet_lite0",
    dictionaries: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of saved dictionaries; users choose among names.")
    ] = None,
    contributions: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of decomposed contributions; likewise.")
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="The largest file that may be uploaded.")] = 200,
    max_models: Annotated[int, typer.Option(min=1, help="How many networks are held in memory.")] = 4,
    device: OnDevice = Device.auto,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Start the interactive app: explain pictures in a browser."""
    if find_spec("gradio") is None:
        raise MissingExtraError("gradio", "app")
    from backlight.app import serve
    from backlight.app.workspace import Workspace
    from backlight.cli.networks import choose_device

    workspace = Workspace(
        default_model=model,
        device=choose_device(device),
        max_models=max_models,
        max_upload_bytes=max_upload_mb * 2**20,
        dictionaries=dictionaries,
        contributions=contributions,
    )
    workspace.model(model)  # a name that cannot be had is said now, and the first user need not wait
    if host not in LOCAL:
        console.say(
            f"backlight: warning: {host} can be reached from other machines: whoever reaches it can upload files and "
            "compute here; there are no accounts and no encryption"
        )
    page, address = serve(workspace, host, port or None, wait=False, open_browser=open_browser)
    console.say(f"Backlight runs at {address} (stop it with Ctrl-C)")
    page.block_thread()
