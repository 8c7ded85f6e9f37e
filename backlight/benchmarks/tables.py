"""The benchmarks that are tables of evaluations: pullbacks, ablations, focus, local, refinement."""

from __future__ import annotations

from collections.abc import Sequence

from backlight.benchmarks.protocols import ABLATIONS, FOCUS, LOCAL, PULLBACKS, REFINEMENT, Protocol
from backlight.benchmarks.report import Report, joined, report
from backlight.benchmarks.study import Options, study
from backlight.benchmarks.subjects import Subject


def run(protocol: Protocol, subjects: Sequence[Subject], options: Options) -> Report:
    """Measure a protocol on networks, write its tables to `options.out`, and give them.

    What was written by an interrupted call of the same settings is not measured again.
    """
    found = report(protocol, [study(protocol, subject, options) for subject in subjects], options.quick)
    found.write(options.out)
    return found


def pullbacks(subjects: Sequence[Subject], options: Options) -> Report:
    """Semantic Pullbacks, Tables 2, 5 and 6: twelve methods, six metrics, and versions of them that see the sign."""
    return run(PULLBACKS, subjects, options)


def focus(subjects: Sequence[Subject], options: Options) -> Report:
    """Semantic Pullbacks, Focus: of a mosaic, how much positive relevance lies on the target's tiles."""
    return run(FOCUS, subjects, options)


def local(subjects: Sequence[Subject], options: Options) -> Report:
    """iERF, Table I: local explanations by five metrics."""
    return run(LOCAL, subjects, options)


def refinement(subjects: Sequence[Subject], options: Options) -> Report:
    """iERF, Table IV: the head that SRD starts from."""
    return run(REFINEMENT, subjects, options)


def ablations(subjects: Sequence[Subject], options: Options) -> Report:
    """Semantic Pullbacks, ablations: one setting at a time, with paired differences from the default."""
    reports = [
        report(protocol, [study(protocol, subject, options) for subject in subjects], options.quick)
        for protocol in ABLATIONS
    ]
    found = joined(reports, "Semantic Pullbacks, ablations: one setting at a time")
    found.write(options.out)
    return found
