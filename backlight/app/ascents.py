"""What the Change tab shows: a picture changed towards a class along soft pullbacks and along gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from backlight.app.computation import Watch
from backlight.app.predictions import chosen_class, class_name, network_input, outputs
from backlight.errors import InputError
from backlight.methods.perturbation import Counterfactual, Perturbation
from backlight.models import LoadedModel
from backlight.rules import DEFAULT_TEMPERATURE
from backlight.rules.temperature import TemperatureSetting
from backlight.shapes import Float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"pullback": "Pullback Ascent", "gradient": "Gradient Ascent"}
COLOURS = {"pullback": "#D55E00", "gradient": "#0072B2"}  # Okabe and Ito's vermillion and blue
PROJECTIONS = {"after every step": "every", "after the last step": "last", "never": "never"}
MOST_STEPS, ROWS = 50, 6


@dataclass(frozen=True)
class Ascending:
    """Settings of both ascents; see `backlight.Counterfactual`. `radius` 0: no ball."""

    n_steps: int = 10
    step: float = 20.0
    radius: float = 100.0
    project: str = "every"
    temperature: TemperatureSetting = DEFAULT_TEMPERATURE

    def __post_init__(self) -> None:
        if not 1 <= self.n_steps <= MOST_STEPS:
            raise InputError(f"the number of steps lies between 1 and {MOST_STEPS}, got {self.n_steps}")
        if not self.step > 0:
            raise InputError(f"a step has a length above 0, got {self.step:g}")
        if self.radius < 0:
            raise InputError(f"a radius is 0 (none) or more, got {self.radius:g}")


def temperature_of(text: str) -> TemperatureSetting:
    """ "paper", "relative", "excitation", or a number that is typed. Raises `InputError` for anything else."""
    word = str(text).strip().lower()
    if word in ("paper", "relative", "excitation"):
        return word
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"a temperature is paper, relative, excitation or a number from 0 on, got {text!r}")
    return value


@dataclass(frozen=True, eq=False)
class Change:
    """What both ascents found for one picture towards `target`. `found`: by "pullback" and "gradient"."""

    loaded: LoadedModel
    target: int
    found: Mapping[str, Perturbation]

    @property
    def original(self) -> int:
        """The class that the network predicted."""
        return int(next(iter(self.found.values())).predictions[0, 0])

    def name(self, index: int) -> str:
        """What a class is called."""
        return class_name(self.loaded, index)

    def distance(self, along: str) -> float:
        """The l2 distance of the end from the start, pictures in [-1, 1]."""
        return float(self.found[along].difference.norm())

    def reached(self, along: str) -> int | None:
        """The first step at which the target is predicted."""
        hits = (self.found[along].predictions[:, 0] == self.target).nonzero()
        return int(hits[0, 0]) if len(hits) else None

    def outside(self, along: str) -> float:
        """The share of the end's values that no picture can show."""
        end = self.found[along].image
        return float(((end < -1 - 1e-6) | (end > 1 + 1e-6)).float().mean())


def change(
    loaded: LoadedModel, picture: Image.Image | None, target: int, settings: Ascending, watch: Watch | None = None
) -> Change:
    """Both ascents of a picture towards a class. Cost: twice `n_steps` forward and backward passes.

    Raises:
        ImageError: no picture. InputError: the network gives features. TargetError: there is no such class.
    """
    if loaded.classes.unit == "feature":
        raise InputError(f"{loaded.name!r} gives features and knows no classes: choose a classifier")
    watch = watch or Watch()
    x = network_input(loaded, picture)
    target = chosen_class(outputs(loaded, x)[0], target)
    return Change(loaded, target, {along: _climbed(loaded, x, target, along, settings, watch) for along in TITLES})


def _climbed(
    loaded: LoadedModel, x: Float[Tensor, "1 3 H W"], target: int, along: str, settings: Ascending, watch: Watch
) -> Perturbation:
    front = watch.front(loaded)
    passes = 0

    def tell(module: object, args: object) -> None:
        nonlocal passes
        passes += 1
        on_the_way = passes <= settings.n_steps
        watch.say(f"{TITLES[along]}: " + (f"step {passes} of {settings.n_steps}" if on_the_way else "probabilities"))

    front.register_forward_pre_hook(tell)  # of the front, which is this call's own: the network is left alone
    method = Counterfactual(
        front,
        n_steps=settings.n_steps,
        step=settings.step,
        radius=settings.radius or None,
        project=settings.project,
        temperature=settings.temperature,
        along=along,
    )
    return method.perturb(x, target, internal_batch_size=1)


def as_picture(x: Float[Tensor, "3 H W"]) -> Image.Image:
    """A picture of values in [-1, 1]; what lies outside is clipped."""
    values = ((x.detach().float().cpu() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    return Image.fromarray((values * 255).round().astype(np.uint8))


def probabilities(made: Change) -> list[tuple[str, float, float, float]]:
    """(class, before, after Pullback Ascent, after Gradient Ascent) in [0, 1]: the target, the predicted, then others.

    The others are those with the largest probability anywhere.
    """
    shares = [next(iter(made.found.values())).outputs[0, 0].double().softmax(0)]
    shares += [made.found[along].outputs[-1, 0].double().softmax(0) for along in TITLES]
    largest = np.max([one.cpu().numpy() for one in shares], axis=0)
    order = dict.fromkeys([made.target, made.original, *(-largest).argsort(kind="stable").tolist()[:ROWS]])
    return [(made.name(k), *(float(one[k]) for one in shares)) for k in list(order)[:ROWS]]  # type: ignore[misc]


def sentence(made: Change, along: str) -> str:
    """What one ascent did to the prediction, in a sentence."""
    found = made.found[along]
    before, after = found.probabilities[[0, -1], 0].tolist()
    end = int(found.predictions[-1, 0])
    reached, steps = made.reached(along), len(found.points) - 1
    if made.target == made.original:
        what = "which was predicted before"
    else:
        what = "never predicted" if reached is None else f"first predicted at step {reached}"
        what += "" if reached is None or end == made.target else ", and no longer at the end"
    text = (
        f"{made.name(made.target)}, {what}: {100 * before:.1f} % before, {100 * after:.1f} % after {steps} steps; "
        f"prediction at the end {made.name(end)}; l2 distance {made.distance(along):.3g}."
    )
    outside = made.outside(along)
    return text + (f" {100 * outside:.0f} % of its values are no colours, and are shown clipped." if outside else "")


def difference_figure(made: Change, along: str) -> Figure:
    """The difference of the end from the start on a signed scale with zero in the middle.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from backlight.viz.figures import Sheet, draw_map

    difference = made.found[along].difference[0]
    height, width = difference.shape[-2:]
    side = 3.4
    sheet = Sheet(side * width / height + 0.2, side + 0.35)
    extent = (0.0, float(width), float(height), 0.0)
    draw_map(sheet, 0.1, 0.05, side, difference, extent, side * width / height)
    return sheet.figure


def trajectories_figure(made: Change) -> Figure:
    """Probabilities against the step for both ascents: the target's in full lines, the first prediction's dashed.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from backlight.viz.figures import Sheet

    sheet = Sheet(6.4, 3.1)
    axes = sheet.axes(0.55, 0.15, 5.7, 1.95)
    for along, found in made.found.items():
        curves: list[tuple[int, Sequence[float], str]] = [(made.target, found.probabilities[:, 0].tolist(), "-o")]
        if made.original != made.target:
            curves.append((made.original, found.probability(made.original)[:, 0].tolist(), "--"))
        for index, values, style in curves:
            label = f"{made.name(index)[:26]}, {TITLES[along]}"
            axes.plot(
                range(len(values)), values, style, color=COLOURS[along], markersize=3.5, linewidth=1.5, label=label
            )
    axes.set(ylim=(-0.03, 1.03), xlabel="step", ylabel="probability")
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    key = axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2)
    for text in key.get_texts():
        text.set_parse_math(False)
    return sheet.figure
