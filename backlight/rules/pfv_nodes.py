"""The graph of nodes that Sharing Ratio Decomposition finds in a forward pass: what each tensor is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from backlight.engine.adjoint import replace_adjoint
from backlight.engine.rules import Call, needs_gradient
from backlight.engine.sites import INPUT
from backlight.engine.targets import output_tensor
from backlight.errors import ModelError, TargetError, UncoveredOperationError
from backlight.rules.affine import space
from backlight.rules.origins import Origin
from backlight.rules.relevance_flow import Flow, Node, same


@dataclass
class Nodes:
    """Notes what results are made of, and makes nodes of them, in one explanation's graph."""

    flow: Flow
    origins: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)

    # what tensors are

    def origin(self, x: Tensor) -> Origin:
        """What a tensor is made of; the first one, and one that no call gave, is an input, and a node."""
        if x not in self.origins and x.grad_fn is not None and len(self.origins):
            return Origin(frozenset(), left="a tensor that was written to in place, or made by an unknown operation,")
        self.begin(x)
        return self.origins[x]

    def begin(self, x: Tensor) -> None:
        """Note an input, which is a node."""
        if x not in self.origins:
            number = self.flow.add(Node(INPUT, INPUT, space(x), frozenset()), same, True)
            self.origins[x] = Origin(frozenset((number,)), number)

    def made(self, result: Any, *sources: Tensor, **changes: Any) -> Any:
        """Note that a result was made of these tensors."""
        known = [self.origin(x) for x in sources]
        parents = frozenset[int]().union(*(origin.parents for origin in known))
        left = telling(origin.left for origin in known)
        bases = tuple({id(base): base for origin in known for base in origin.bases}.values())
        held = changes.pop("held", frozenset()).union(*(origin.held for origin in known))
        fresh = {"windowed": any(origin.windowed for origin in known), "left": left, "bases": bases, **changes}
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if needs_gradient(value):
                self.origins[value] = Origin(parents, held=held, **fresh)
        return result

    def check_head(self, outputs: Any) -> None:
        """See to it that what the score is read from depends on the last node, and on no other but through it.

        Raises:
            ModelError: it reads another feature map directly, whose relevance would be lost.
        """
        try:
            origin = self.origins.get(output_tensor(outputs))
        except TargetError:  # only a target of the user's knows what is read
            return
        found = frozenset() if origin is None else self.flow.read_by_head(origin.parents | origin.held)
        nodes, last = self.flow.nodes, self.flow.last
        others = [nodes[number].layer or "(root)" for number in sorted(found) if number < last]
        if others and last >= 0:
            raise ModelError(
                "sharing ratios start from one feature map, the last, that of "
                f"{nodes[last].layer or '(root)'!r}; the score reads others directly: {', '.join(others)}"
            )

    # nodes

    def node(self, call: Call, z: Tensor, sources: Iterable[Tensor], function: Callable[[Tensor], Tensor]) -> Tensor:
        """function(z), as a node: an activation of z, or z itself, whose numbers come from the sources."""
        known = [self.origin(x) for x in sources]
        node = Node(call.layer, call.operation, space(z), self._parents(call, known))
        number = self.flow.add(node, function, len(known) > 1)
        of = known[0].node if len(known) == 1 and known[0].total is not None else None
        vjp, raw = self.flow.node(number, function, of), z
        if of is not None and known[0].total is not None:  # an activation of a sum shares as the sum would
            z = known[0].total
        y: Tensor = replace_adjoint(z, function, vjp, "z" if function is same else "zy", call.run.phase)
        call.run.keep(y)
        self.origins[y] = Origin(frozenset((number,)), number, total=raw if len(known) > 1 else None)
        return y

    def at_node(self, call: Call, x: Tensor) -> Tensor:
        """x, as a node: what a layer with a window reads; where the theory was left, x as it is."""
        origin = self.origin(x)
        return x if origin.node is not None or origin.left else self.node(call, x, [x], same)

    def _parents(self, call: Call, known: list[Origin]) -> frozenset[int]:
        left = telling(origin.left for origin in known)
        if left is not None:
            raise UncoveredOperationError(
                "sharing ratios are defined between activations, with affine layers over positions in between: "
                f"{left}, before {call.layer or '(root)'!r}, leaves that theory; AttnLRP follows such networks"
            )
        return frozenset[int]().union(*(origin.parents for origin in known))

    def leave(self, call: Call, result: Any, signals: list[Tensor]) -> Any:
        here = f"{call.operation!r} in layer {call.layer or '(root)'!r}"
        return self.made(result, *signals, left=telling([*(self.origin(x).left for x in signals), here]))


def telling(reasons: Iterable[str | None]) -> str | None:
    """Of the reasons why the theory was left, the first that is an attention's, else the first."""
    known = [reason for reason in reasons if reason]
    told = [reason for reason in known if "attention" in reason or "softmax" in reason]
    return next(iter(told or known), None)
