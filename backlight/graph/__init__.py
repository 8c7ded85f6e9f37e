"""Concept graphs: how the concepts of one layer make those of the next, and these the decision."""

from backlight.graph.build import build_graph, build_graphs
from backlight.graph.coded import Coded, code_sites
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis import Diagnosis, diagnose
from backlight.graph.diagnosis_change import ChangeDiagnosis, diagnose_change
from backlight.graph.difference import GraphDifference, difference
from backlight.graph.icat import Edges, edges
from backlight.graph.layers import LayerConcepts
from backlight.graph.layers_fitted import layer_of, open_layers
from backlight.graph.mean_graph import mean_graph
from backlight.graph.operators import OPERATORS, operator
from backlight.graph.routes import Route, routes

__all__ = [
    "OPERATORS",
    "ChangeDiagnosis",
    "Coded",
    "ConceptGraph",
    "Diagnosis",
    "Edges",
    "GraphDifference",
    "LayerConcepts",
    "Route",
    "build_graph",
    "build_graphs",
    "code_sites",
    "diagnose",
    "diagnose_change",
    "difference",
    "edges",
    "layer_of",
    "mean_graph",
    "open_layers",
    "operator",
    "routes",
]
