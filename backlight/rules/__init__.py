"""Rule sets by name: gradient, guided, deconvnet, pullback, soft pullback, excitation pullback, relevance.

Each is a function that returns a `RuleSet`. A new family is a file in this room and one line in `RULE_SETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backlight.engine.rules import GRADIENT, Call, Rule, RuleSet
from backlight.errors import UnknownNameError
from backlight.rules.attention import AttentionRule, MultiheadRule, SoftmaxRule
from backlight.rules.attn_lrp import attn_lrp, cp_lrp
from backlight.rules.clipped import DeconvnetRule, GuidedRule
from backlight.rules.composites import lrp
from backlight.rules.gates import GateFunction, GateRule, GLURule, gate_rules, logistic, module_gates, normal_cdf
from backlight.rules.normalisation import MeanRule, NormalizeRule, NormRule
from backlight.rules.pfv import srd
from backlight.rules.pooling import PoolRule, excitation_routing, soft_routing
from backlight.rules.products import CentreRule, PowerRule, ProductRule, QuotientRule, SpreadRule
from backlight.rules.temperature import Relative, Temperature, TemperatureSetting, temperatures

DEFAULT_TEMPERATURE: TemperatureSetting = "relative"


def _adjoint_rules(
    temperature: dict[str, Temperature] | None, cdf: GateFunction, routing: Callable[..., Any]
) -> tuple[dict[str, Rule], dict[str, Rule]]:
    gates = GateRule(temperature, cdf, "soft gate" if temperature else "gate")
    tau = temperature or {}
    attention = tau.get("attention", 1.0)
    if isinstance(attention, Relative):
        attention = attention.c
    statistics = dict.fromkeys(("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"), NormRule())
    rules: dict[str, Rule] = {
        **gate_rules(gates),
        "glu": GLURule(),
        **statistics,
        **dict.fromkeys(("normalize", "local_response_norm"), NormalizeRule()),
        "mean": MeanRule(),
        "sub": CentreRule(),
        **dict.fromkeys(("mul", "matmul", "addmm", "einsum"), ProductRule(gates)),
        "div": QuotientRule(),
        **dict.fromkeys(("pow", "square", "sqrt", "rsqrt", "reciprocal"), PowerRule()),
        **dict.fromkeys(
            ("norm", "linalg_norm", "linalg_vector_norm", "std", "var", "std_mean", "var_mean"), SpreadRule()
        ),
        "attention": AttentionRule(attention),
        "multihead_attention": MultiheadRule(),
        "softmax": SoftmaxRule(attention),
    }
    if temperature:
        rules.update(dict.fromkeys(("max_pool", "adaptive_max_pool"), PoolRule(tau["max_pool"], routing)))
    return rules, module_gates(gates)


def gradient() -> RuleSet:
    """Autograd's own vector-Jacobian products."""
    return GRADIENT


def deconvnet() -> RuleSet:
    """Zeiler and Fergus 2014: activations pass positive cotangents."""
    return RuleSet("deconvnet", gate_rules(DeconvnetRule()), lenient=True)


def guided() -> RuleSet:
    """Springenberg et al. 2015: active units pass positive cotangents."""
    return RuleSet("guided", gate_rules(GuidedRule()), lenient=True)


def pullback() -> RuleSet:
    """The adjoint of the dynamic linear operator, equation 4 of Semantic Pullbacks: gates, statistics, weights held."""
    rules, modules = _adjoint_rules(None, normal_cdf, soft_routing)
    return RuleSet("pullback", rules, modules)


def soft_pullback(temperature: TemperatureSetting = DEFAULT_TEMPERATURE) -> RuleSet:
    """Soft adjoints, equation 5 and appendix A of Semantic Pullbacks; see `backlight.rules.temperature`."""
    return _softened("soft_pullback", temperature, normal_cdf, soft_routing)


def excitation_pullback(temperature: TemperatureSetting = "excitation") -> RuleSet:
    """The predecessor: sigma(z / T) for ReLU and the gradient of soft pooling, one T = 0.3; else as `pullback`."""
    return _softened("excitation_pullback", temperature, logistic, excitation_routing)


def _softened(name: str, setting: TemperatureSetting, cdf: GateFunction, routing: Callable[..., Any]) -> RuleSet:
    base, layers = temperatures(setting)

    def with_temperature(temperature: dict[str, Temperature]) -> RuleSet:
        rules, modules = _adjoint_rules(temperature, cdf, routing)
        return RuleSet(name, rules, modules)

    return with_temperature(base).override({layer: with_temperature(value) for layer, value in layers.items()})


RULE_SETS: dict[str, Callable[..., RuleSet]] = {
    "gradient": gradient,
    "deconvnet": deconvnet,
    "guided": guided,
    "pullback": pullback,
    "soft_pullback": soft_pullback,
    "excitation_pullback": excitation_pullback,
    "srd": srd,
    "attn_lrp": attn_lrp,
    "cp_lrp": cp_lrp,
    "lrp": lrp,
}


def rule_set(name: str, **settings: Any) -> RuleSet:
    """A rule set by name.

    Raises:
        UnknownNameError: a name that is not in `RULE_SETS`.
    """
    if name not in RULE_SETS:
        raise UnknownNameError("rule set", name, RULE_SETS)
    return RULE_SETS[name](**settings)


__all__ = [
    "RULE_SETS",
    "Call",
    "Relative",
    "Rule",
    "RuleSet",
    "attn_lrp",
    "cp_lrp",
    "deconvnet",
    "excitation_pullback",
    "gradient",
    "guided",
    "lrp",
    "pullback",
    "rule_set",
    "soft_pullback",
    "srd",
]
