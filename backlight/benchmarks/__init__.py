"""The papers' tables as commands: exact protocols, published numbers beside ours, on any network and pictures.

    backlight benchmark pullbacks --quick --out out
    python: pullbacks([open_subject("efficientnet_lite0")], Options(out, data=folder, quick=True))

A table of evaluations is data: rows (methods with their settings) and columns (metrics with theirs) in `protocols`,
numbers of the papers in `published`; `study` runs it by `backlight.evaluation.evaluate`, so that it can be interrupted
and repeated, and `report` prints it.
"""
