"""`backlight concepts`: dictionaries of hidden layers, from sampled feature vectors to pictures of what they encode."""

from __future__ import annotations

import typer

from backlight.cli.concept_bank import bank
from backlight.cli.concept_comparison import compare
from backlight.cli.concept_fitting import encode, fit
from backlight.cli.concept_localisation import localise
from backlight.cli.concept_showing import show

concepts = typer.Typer(
    name="concepts",
    help="Find out what hidden layers encode: sample feature vectors, fit dictionaries, look at concepts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

concepts.command()(bank)
concepts.command()(fit)
concepts.command()(encode)
concepts.command()(compare)
concepts.command()(show)
concepts.command()(localise)
