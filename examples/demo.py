"""Explain four photographs with six methods, and turn a cat into a tiger: what `make demo` runs."""

from __future__ import annotations

import time
from pathlib import Path

from backlight.cli import main
from backlight.data import sample_image

OUT = Path("out/demo")
PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut")
METHODS = "Saliency,IntegratedGradients,SmoothGrad,GuidedBackprop,SoftPullback,PullbackAscent"


def photographs(folder: Path) -> list[str]:
    """Write the sample photographs to a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in PHOTOGRAPHS]
    for name, path in zip(PHOTOGRAPHS, paths, strict=True):
        sample_image(name).save(path)
    return [str(path) for path in paths]


def run(*arguments: str) -> None:
    """A `backlight` command, in this process."""
    print("backlight", *arguments, flush=True)
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise


def demo() -> None:
    """Explain, perturb, and say where the pictures are."""
    start = time.perf_counter()
    paths = photographs(OUT / "photographs")
    common = ("--model", "efficientnet_lite0", "--out", str(OUT))
    run("explain", *paths, "--method", METHODS, *common)
    run("counterfactual", paths[0], "--to", "tiger", *common)
    print(f"\nThe pictures, after {time.perf_counter() - start:.0f} s:")
    for picture in sorted(OUT.glob("*.png")):
        print(f"  {picture}")


if __name__ == "__main__":
    demo()
