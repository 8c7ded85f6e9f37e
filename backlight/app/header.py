"""What stands above all tabs: the picture, the model, and the class that is explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from backlight.app.messages import telling, told
from backlight.app.predictions import PREDICTED, best, class_choices, grey_input, network_input, outputs
from backlight.app.uploads import read_upload
from backlight.app.workspace import Workspace, model_names
from backlight.data.samples import sample_images
from backlight.errors import ImageError, MissingExtraError
from backlight.models import LoadedModel
from backlight.models.embedded import EMBEDDED

EXAMPLES = {"chelsea": "a cat", "astronaut": "an astronaut", "coffee": "coffee", "rocket": "a rocket"}
MODEL: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
}  # of every listener that runs a model: one at a time


@dataclass(frozen=True)
class Chosen:
    """The components that tabs use as inputs, in the order of `inputs`.

    `image` gives an upright RGB `PIL.Image` or None; `model`, `weights`, `names` are what `Workspace.model` takes;
    `target` gives the index of a class, or `PREDICTED`. `ready` changes once another model has been loaded.
    """

    image: gr.Image
    model: gr.Dropdown
    weights: gr.File
    names: gr.Textbox
    target: gr.Dropdown
    ready: gr.State

    @property
    def network(self) -> list[Any]:
        """The inputs of `Workspace.model`."""
        return [self.model, self.weights, self.names]

    @property
    def inputs(self) -> list[Any]:
        """Picture, the three of `network`, target."""
        return [self.image, *self.network, self.target]


def header(workspace: Workspace) -> Chosen:
    """Draw the header and wire it."""
    with gr.Row(elem_classes="header"):
        with gr.Column(min_width=280):
            image = _picture(workspace)
        with gr.Column(min_width=280):
            model = gr.Dropdown(
                list(EMBEDDED), value=workspace.default_model, label="Model", allow_custom_value=True,
                info="Embedded models come first; or type any timm or torchvision name.",
            )  # fmt: skip
            with gr.Accordion("Own weights", open=False):
                most = workspace.max_upload_bytes // 2**20
                weights = gr.File(
                    label=f"Checkpoint of this model: a state dict, .safetensors or torch's own, at most {most} MB",
                    file_types=[".safetensors", ".pth", ".pt", ".bin"], height=110,
                )  # fmt: skip
                names = gr.Textbox(label="Names of its classes, one a line, if they are others", lines=2)
            about = gr.Markdown(elem_id="about-model", elem_classes="quiet")
            target = gr.Dropdown(
                [("the predicted class", PREDICTED)], value=PREDICTED, label="Class to explain", filterable=True,
                elem_id="target", info="Type to search among all classes.",
            )  # fmt: skip
            top = gr.Radio([], label="What the model sees", elem_id="top", info="Pick one to explain it.")
    chosen = Chosen(image, model, weights, names, target, gr.State(""))
    _wire(workspace, chosen, about, top)
    return chosen


def _wire(workspace: Workspace, chosen: Chosen, about: gr.Markdown, top: gr.Radio) -> None:
    @told
    def open_model(name: str, weights: str | None, names: str) -> tuple[Any, str, str]:
        loaded = workspace.model(name, weights, names)
        with workspace.lock:
            count = outputs_of(loaded)
        choices = gr.Dropdown(choices=class_choices(loaded, count), value=PREDICTED)
        return choices, description(loaded), f"{name}\n{loaded.source}\n{id(loaded)}"

    @told
    def predict(image: Image.Image | None, name: str, weights: str | None, names: str) -> Any:
        if image is None:
            return gr.Radio(choices=[], value=None)
        loaded = workspace.model(name, weights, names)
        with workspace.lock:
            found = best(loaded, outputs(loaded, network_input(loaded, image))[0])
        return gr.Radio(choices=[(str(one), one.index) for one in found], value=None)

    def changed_model(*triggers: Any) -> None:
        gr.on(
            list(triggers), open_model, chosen.network, [chosen.target, about, chosen.ready],
            api_name="model", show_progress_on=about, **MODEL,
        ).success(predict, [chosen.image, *chosen.network], top, api_visibility="private", **MODEL)  # fmt: skip

    chosen.image.change(predict, [chosen.image, *chosen.network], top, api_name="predict", **MODEL)
    page: Any = gr.context.Context.root_block
    # names are listed once somebody is there: to list timm's is to import timm, which takes longer than the page
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    page.load(told(lambda: gr.Dropdown(choices=_offered())), None, chosen.model, **quiet)
    changed_model(page.load, chosen.model.change, chosen.weights.change, chosen.names.blur)
    top.input(lambda index: index, top, chosen.target, queue=False, api_visibility="private")


def description(loaded: LoadedModel) -> str:
    """A line about a network: its class, its size, where its weights come from."""
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    height, width = loaded.preprocessing.size
    return (
        f"{type(loaded.model).__name__}, {size / 1e6:.1f} million parameters, sees {height} × {width} pixels. "
        f"Weights: {loaded.source}."
    )


def outputs_of(loaded: LoadedModel) -> int:
    """How many outputs a network has; where they have no names, it is asked with a grey picture."""
    if loaded.classes.names:
        return len(loaded.classes)
    return outputs(loaded, grey_input(loaded)).shape[1]


def _offered() -> list[str]:
    embedded = list(EMBEDDED)
    return [*embedded, *(name for name in model_names() if name not in EMBEDDED)]


def _picture(workspace: Workspace) -> gr.Image:
    """The box for a picture; the upload is looked at by `read_upload` before anything decodes it."""
    most = min(workspace.max_picture_bytes, workspace.max_upload_bytes) // 2**20
    box = gr.Image(
        _example("chelsea"), label="Picture", sources=["upload", "clipboard"], type="filepath", image_mode=None,
        format="png", height=320, elem_id="picture", alt_text="The picture that is explained",
        placeholder=f"Drop a picture here, click to upload one, or paste one. At most {most} MB.",
    )  # fmt: skip

    def received(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        with telling():
            if payload.path is None or (payload.url or "").startswith("data:"):
                raise ImageError("the picture did not arrive as a file; upload it again")
            limit = min(workspace.max_picture_bytes, workspace.max_upload_bytes)
            return read_upload(payload.path, limit, workspace.max_pixels)

    box.preprocess = received  # type: ignore[method-assign]  # Gradio's own decodes before anyone asks for the size
    examples = {label: found for name, label in EXAMPLES.items() if (found := _example(name)) is not None}
    if examples:  # by their names: pictures alone would say nothing to a screen reader
        gr.Examples(list(examples.values()), box, label="Examples", example_labels=list(examples))
    return box


def _example(name: str) -> Image.Image | None:
    try:
        return sample_images().get(name)
    except MissingExtraError:
        return None
