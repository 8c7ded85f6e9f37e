"""Texts with coloured tokens, for terminals and as a page; contributions by block and token, and by head.

Red speaks for the target, blue against it, white is zero: the two arms stay apart under the common kinds of colour
blindness. Tokens come from anywhere: a page holds them escaped, a terminal without control characters.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from backlight.errors import InputError, MissingExtraError
from backlight.shapes import Float
from backlight.text.contributions import LayerContributions, TextContributions
from backlight.text.explanation import ExplainedText
from backlight.viz.figures import COLOURS, EDGE, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text

FOR, AGAINST = (178, 24, 43), (33, 102, 172)
Colour = tuple[int, int, int]
CELL, LONGEST, LEFT, HEADS, BETWEEN = 0.24, 13.0, 0.75, 2.6, 0.7  # inches
TOP, ABOVE, BELOW = 0.4, 0.8, 0.45  # of the figure; of a map, for its title and names, and for its bar
LINE, TEXT, WIDE = 0.27, 10.5, 7.2  # inches, points, inches: of the tokens' picture
SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
KINDS = {"blocks": "block outputs", "attention": "attention", "mlp": "MLP hidden units"}
STYLE = """
body{font:16px/1.9 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#1b2530;background:#fff}
h1{font-size:1.1em}p,table{font-size:.85em;line-height:1.5}td,th{padding:.1em 1em .1em 0;text-align:left}
.text{white-space:pre-wrap;overflow-wrap:anywhere}.text span{border-radius:2px;padding:.1em 0}
.key span{padding:.1em .6em}img{max-width:100%}td:last-child{font-variant-numeric:tabular-nums}
"""


def token_colours(relevance: Float[Tensor, "L"]) -> list[Colour]:
    """A background for each token: white at zero, full colour at the largest absolute value.

    Raises:
        InputError: a value that is not finite.
    """
    values = relevance.double().numpy()
    if not np.isfinite(values).all():
        raise InputError("a relevance that is not finite has no colour")
    largest = np.abs(values).max(initial=0.0)
    return [_colour(value / largest if largest else 0.0) for value in values.tolist()]


def _colour(share: float) -> Colour:
    end = FOR if share > 0 else AGAINST
    red, green, blue = (round(255 + abs(share) * (one - 255)) for one in end)
    return red, green, blue


def ink(colour: Colour) -> str:
    """Black or white, whichever stands out more (relative luminance of WCAG 2, the crossing at 0.179)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return "#000000" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "#ffffff"


def visible(token: str) -> str:
    """A token as it can be shown: line breaks by their signs, other characters that do not print as �."""
    return "".join(SIGNS.get(one, one if one.isprintable() else "�") for one in token)


def token_style(colour: Colour) -> str:
    """A token's background and ink, as CSS."""
    return f"background:#{bytes(colour).hex()};color:{ink(colour)}"


def coloured_text(found: ExplainedText) -> Text:
    """The tokens for Rich, coloured by relevance. Raises `MissingExtraError`: rich is not installed."""
    try:
        from rich.text import Text
    except ModuleNotFoundError:
        raise MissingExtraError("rich", "cli") from None
    shown = Text()
    for token, colour in zip(found.tokens, token_colours(found.relevance), strict=True):
        shown.append(visible(token), f"{ink(colour)} on #{bytes(colour).hex()}")
    return shown


def text_page(found: ExplainedText, contributions: TextContributions | None = None, *, title: str = "") -> str:
    """One HTML file, without scripts, fonts or anything else from elsewhere: coloured tokens, predictions, heat maps.

    Raises:
        InputError: relevance that is not finite.
        MissingExtraError: matplotlib is not installed, where contributions are given.
    """
    heading = html.escape(visible(title or f"{found.asked}, {found.method}"))
    largest = float(found.relevance.abs().max())
    ends = "".join(
        f'<span style="{token_style(colour)}">{label}</span>'
        for colour, label in ((AGAINST, f"−{largest:.2g}"), ((255, 255, 255), "0"), (FOR, f"+{largest:.2g}"))
    )
    missing = "" if found.residual is None else f", not distributed {found.residual:.3g}"
    rows = "".join(
        f"<tr><td>{html.escape(visible(token))}</td><td>{100 * share:.1f} %</td></tr>"
        for token, share in found.predicted
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">',
        f"<title>{heading}</title><style>{STYLE}</style></head><body>",
        f"<h1>{heading}</h1>",
        f'<p class="text">{_spans(found)}</p>',
        f'<p class="key">against {ends} for</p>',
        f"<p>score {found.score:.4g}{missing}</p>",
        f"<table><tr><th>likeliest</th><th></th></tr>{rows}</table>",
    ]
    if contributions is not None:
        picture = io.BytesIO()
        contributions_figure(contributions).savefig(picture, format="png", dpi=110)
        data = base64.b64encode(picture.getvalue()).decode("ascii")
        parts.append(f'<p><img alt="contributions by block and token" src="data:image/png;base64,{data}"></p>')
    return "\n".join([*parts, "</body></html>\n"])


def _spans(found: ExplainedText) -> str:
    spans = []
    for token, value, colour in zip(
        found.tokens, found.relevance.tolist(), token_colours(found.relevance), strict=True
    ):
        spans.append(f'<span style="{token_style(colour)}" title="{value:.4g}">{html.escape(visible(token))}</span>')
        if "\n" in token:
            spans.append("<br>")
    return "".join(spans)


def relevance_figure(found: ExplainedText, title: str = "") -> Figure:
    """The tokens in lines, coloured by relevance, above the scale of the colours.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: relevance that is not finite.
    """
    colours = token_colours(found.relevance)
    places, lines = _places([visible(token).replace(" ", "\u00a0") for token in found.tokens], found.tokens)
    sheet = Sheet(WIDE + 2 * EDGE, TOP + lines * LINE + 0.75)
    for (left, line, width, token), colour in zip(places, colours, strict=True):
        axes = sheet.axes(EDGE + left, TOP + line * LINE, width, 0.85 * LINE)
        axes.set_axis_off()
        axes.add_patch(_box(colour))
        axes.text(0, 0.45, token, fontsize=TEXT, color=ink(colour), va="center", parse_math=False, clip_on=False)
    largest = float(found.relevance.abs().max())
    bar = sheet.axes(EDGE, TOP + lines * LINE + 0.25, 2.2, 0.09)
    bar.imshow(np.linspace(-1, 1, 201)[None], cmap=_colour_map(), aspect="auto", extent=(-1, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([-1, 0, 1], [f"−{largest:.2g}", "0", f"+{largest:.2g}"], fontsize=7.5)
    bar.tick_params(length=2, pad=1.5)
    sheet.text(EDGE + 2.7, TOP + lines * LINE + 0.3, f"score {found.score:.4g}", fontsize=8.5)
    sheet.title(title or f"{found.asked}, {found.method}")
    return sheet.figure


def _places(shown: Sequence[str], tokens: Sequence[str]) -> tuple[list[tuple[float, int, float, str]], int]:
    """(left, line, width, text) of each token, in inches, and the number of lines; one that is full breaks."""
    measure = Sheet(1.0, 1.0).figure
    left, line, places = 0.0, 0, []
    for text, token in zip(shown, tokens, strict=True):
        one = measure.text(0, 0, text, fontsize=TEXT, parse_math=False)
        width = float(one.get_window_extent().width) / measure.dpi
        one.remove()
        if left and left + width > WIDE:
            left, line = 0.0, line + 1
        places.append((left, line, max(width, 0.02), text))
        left += width
        if "\n" in token:
            left, line = 0.0, line + 1
    return places, line + (1 if left else 0)


def _box(colour: Colour) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), 1, 1, color=[one / 255 for one in colour], linewidth=0)


def _colour_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    ends = [[one / 255 for one in colour] for colour in (AGAINST, (255, 255, 255), FOR)]
    return LinearSegmentedColormap.from_list("relevance", ends)


def contributions_figure(found: TextContributions, title: str = "") -> Figure:
    """A heat map of each kind, blocks by tokens, the last block on top; beside the attention's, blocks by heads.

    Each has its own symmetric scale.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: contributions that are not finite.
    """
    tokens = len(found.tokens)
    width = min(max(tokens * CELL, 2.5), LONGEST)
    heights = [max(len(one.sites) * CELL, 1.0) for one in found.layers.values()]
    beside = any(one.heads is not None for one in found.layers.values())
    whole = LEFT + width + (BETWEEN + HEADS if beside else 0) + EDGE
    sheet = Sheet(max(whole, 6.0), TOP + sum(ABOVE + height + BELOW for height in heights))
    top = TOP + ABOVE
    for (kind, layers), height in zip(found.layers.items(), heights, strict=True):
        _draw_layers(sheet, top, width, height, kind, layers, found.tokens)
        top += height + BELOW + ABOVE
    sheet.title(title or f"contributions to the {found.asked}, {found.algorithm}")
    return sheet.figure


def _draw_layers(
    sheet: Sheet, top: float, width: float, height: float, kind: str, layers: LayerContributions, tokens: Sequence[str]
) -> None:
    columns = [visible(token).strip() or "·" for token in tokens]
    _draw_map(sheet, (LEFT, top, width, height), layers.values, columns, KINDS.get(kind, kind))
    if layers.heads is not None:
        by_head = layers.heads.sum(2)
        numbers = [str(head) for head in range(by_head.shape[1])]
        place = (LEFT + width + BETWEEN, top, HEADS, height)
        _draw_map(sheet, place, by_head, numbers, "heads, summed over tokens")


def _draw_map(
    sheet: Sheet,
    place: tuple[float, float, float, float],
    values: Float[Tensor, "S K"],
    columns: Sequence[str],
    title: str,
) -> None:
    """A signed map, row 0 at the bottom; names on top, thinned where they are many; its bar ends at the largest."""
    left, top, width, height = place
    shown = values.double().numpy()
    if not np.isfinite(shown).all():
        raise InputError(f"contributions that are not finite cannot be drawn: {title}")
    scale = float(np.abs(shown).max(initial=0.0))
    axes = sheet.axes(left, top, width, height)
    drawn = axes.imshow(
        shown, cmap=COLOURS, vmin=-(scale or 1), vmax=scale or 1, aspect="auto", origin="lower", interpolation="nearest"
    )
    step, rows = -(-len(columns) // 60), -(-len(shown) // 40)
    places = list(range(0, len(columns), step))
    axes.xaxis.tick_top()
    axes.set_xticks(places)
    for label in axes.set_xticklabels([columns[one][:12] for one in places], fontsize=6.5, rotation=90):
        label.set_parse_math(False)
    axes.set_yticks(range(0, len(shown), rows))
    axes.set_yticklabels([str(one) for one in range(0, len(shown), rows)], fontsize=7)
    axes.set_ylabel("block", fontsize=8)
    axes.tick_params(length=1.5, pad=1)
    sheet.text(left, top - ABOVE + 0.1, title, fontsize=9.5)
    bar = sheet.figure.colorbar(drawn, cax=sheet.axes(left, top + height + 0.06, width, 0.07), orientation="horizontal")
    bar.set_ticks(
        [-scale, 0, scale] if scale else [0], labels=[f"−{scale:.2g}", "0", f"+{scale:.2g}"] if scale else ["0"]
    )
    bar.ax.tick_params(labelsize=7, length=2, pad=1.5)
