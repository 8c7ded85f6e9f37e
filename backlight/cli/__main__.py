"""`python -m backlight.cli`."""

from backlight.cli import main

main()
