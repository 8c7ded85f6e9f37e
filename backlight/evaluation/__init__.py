"""Evaluations: many explanations, many metrics, many samples; resumable, with the statistics that a table needs.

    from backlight.evaluation import evaluate
    found = evaluate(model, samples, {"gradient": Saliency(model)}, {"Infidelity": Infidelity()}, out="out")
    found.table("Infidelity")["gradient"].mean
    print(found.to_markdown())

The folder `out` is a journal: after a kill, the same call goes on where it stopped.
"""

from __future__ import annotations

from backlight.data.labelled import LabelledFolder
from backlight.evaluation.evaluation import Evaluation, Skipped
from backlight.evaluation.footnotes import Footnote
from backlight.evaluation.journal import Failure
from backlight.evaluation.run import Step, evaluate
from backlight.evaluation.samples import Sample, Samples, TensorSamples
from backlight.evaluation.statistics import Paired, Summary, bootstrap, paired, summaries

__all__ = [
    "Evaluation",
    "Failure",
    "Footnote",
    "LabelledFolder",
    "Paired",
    "Sample",
    "Samples",
    "Skipped",
    "Step",
    "Summary",
    "TensorSamples",
    "bootstrap",
    "evaluate",
    "paired",
    "summaries",
]
