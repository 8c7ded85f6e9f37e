"""Tables as HTML: what stands in them comes from anywhere, and reaches the page as text."""

from __future__ import annotations

import html
from collections.abc import Sequence

STYLE = (
    "<style>.bl-table{overflow-x:auto}.bl-table table{border-collapse:collapse;width:100%;font-size:.9rem}"
    ".bl-table caption{text-align:left;padding:.2rem 0;font-weight:600}"
    ".bl-table th,.bl-table td{padding:.25rem .4rem;border-bottom:1px solid var(--border-color-primary);"
    "text-align:right}.bl-table td{white-space:nowrap}.bl-table th{font-weight:600}"
    ".bl-table .words{text-align:left;white-space:normal}.bl-table td.words{min-width:7rem}</style>"
)


def html_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table that a screen reader can read: a caption, heads of columns, and rows whose first cell is their head.

    `words`: the columns of words, which stand on the left and may break; the others are numbers.
    """

    def cell(tag: str, place: int, text: str, scope: str = "") -> str:
        style = ' class="words"' if place in words else ""
        return f"<{tag}{style}{scope}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", place, text, ' scope="col"') for place, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(
            cell("th", place, text, ' scope="row"') if place == 0 else cell("td", place, text)
            for place, text in enumerate(row)
        ) + "</tr>"
        for row in rows
    )  # fmt: skip
    return (
        f'{STYLE}<div class="bl-table" tabindex="0" role="region" aria-label="{html.escape(caption, quote=True)}">'
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def share(value: float) -> str:
    """A probability or share in per cent."""
    return f"{100 * value:.1f} %"
