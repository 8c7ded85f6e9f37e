"""Coloured tokens and heat maps: what colours say, and that tokens of any kind do no harm."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from small_languages import IDS, small

from backlight.errors import InputError
from backlight.text import ExplainedText, text_contributions
from backlight.viz import show
from backlight.viz.text_figures import coloured_text, contributions_figure, text_page, token_colours, visible

TOKENS = ("<s>", " a", '"><script>alert(1)</script>', "\n", "\x1b[2J", " &amp;", "日本")
RELEVANCE = torch.tensor([0.0, 1.0, -2.0, 0.5, -0.1, 2.0, 1e-9])


@pytest.fixture
def found() -> ExplainedText:
    return ExplainedText(TOKENS, RELEVANCE, 3.0, "logit of '<b>'", "AttnLRP", (("<i>", 0.5), ("\n", 0.2)))


def test_colours_are_white_at_zero_full_at_the_largest_and_apart_by_sign() -> None:
    colours = token_colours(RELEVANCE)
    assert colours[0] == (255, 255, 255)
    assert colours[5] == (178, 24, 43)
    assert colours[2] == (33, 102, 172)
    assert colours[1][0] > colours[1][2]  # red for
    assert colours[4][2] > colours[4][0]  # blue against
    assert token_colours(7 * RELEVANCE) == colours
    assert token_colours(torch.zeros(2)) == [(255, 255, 255)] * 2
    with pytest.raises(InputError, match="not finite"):
        token_colours(torch.tensor([1.0, torch.nan]))


def test_a_page_holds_tokens_as_text_alone(found: ExplainedText) -> None:
    class Read(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            assert not any(name.startswith("on") or (value or "").startswith("http") for name, value in attrs)

    page, reader = text_page(found, title="</title><script>"), Read()
    reader.feed(page)
    assert not reader.tags & {"script", "b", "i", "iframe", "link"}
    shown = re.findall(r"<span style[^>]*title[^>]*>(.*?)</span>", page)
    assert [html.unescape(one) for one in shown] == [visible(token) for token in TOKENS]
    assert "\x1b" not in page
    assert "default-src 'none'" in page


def test_a_terminal_gets_no_control_characters_and_every_token_its_colour(found: ExplainedText) -> None:
    text = coloured_text(found)
    assert text.plain == '<s> a"><script>alert(1)</script>⏎�[2J &amp;日本'
    assert text.spans[5].style == "#ffffff on #b2182b"
    assert text.spans[0].style == "#000000 on #ffffff"
    with pytest.raises(InputError, match="not finite"):
        coloured_text(replace(found, relevance=RELEVANCE / 0))


def test_heat_maps_show_every_block_token_and_head() -> None:
    contributions = text_contributions(small("llama"), IDS, 4, algorithm="ActGrad")
    figure = contributions_figure(contributions)
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    expected = [contributions.layers[kind].values for kind in ("blocks", "attention", "mlp")]
    heads = contributions.layers["attention"].heads
    assert heads is not None
    expected.insert(2, heads.sum(2))
    assert len(drawn) == 4
    for one, values in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), values, rtol=1e-6)
    for axes in figure.axes:
        for image in axes.images:
            low, high = image.get_clim()
            assert -low == high == pytest.approx(float(np.abs(image.get_array()).max()))


def test_a_picture_of_the_tokens_shows_every_one_in_its_colour_and_within_the_lines(found: ExplainedText) -> None:
    words = tuple(f" word{place}" for place in range(40))
    long = replace(found, tokens=(*words, "\n", " end"), relevance=torch.linspace(-1, 2, 42))
    for one in (found, long):
        figure = show(one).figure
        boxes = [axes for axes in figure.axes if axes.patches]
        assert "".join(axes.texts[0].get_text() for axes in boxes) == "".join(
            visible(token).replace(" ", "\u00a0") for token in one.tokens
        )
        faces = [tuple(round(255 * part) for part in axes.patches[0].get_facecolor()[:3]) for axes in boxes]
        assert faces == token_colours(one.relevance)
        assert all(0 <= axes.get_position().x0 <= axes.get_position().x1 <= 1 for axes in boxes)
        lines = sorted({round(axes.get_position().y0, 6) for axes in boxes}, reverse=True)
        assert len(lines) == (2 if one is found else 5)
    assert [axes.texts[0].get_text() for axes in boxes if round(axes.get_position().y0, 6) == lines[-1]] == [
        "\u00a0end"
    ]
    with pytest.raises(InputError, match="no setting"):
        show(found, sample=1)
    contributions = text_contributions(small("llama"), IDS, 4, algorithm="ActGrad")
    assert len(show(contributions, title="by block").figure.axes) == len(contributions_figure(contributions).axes)
