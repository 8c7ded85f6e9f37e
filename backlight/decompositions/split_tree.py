"""The tree of splits: which clusters are split next, and which of those that were split count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.shapes import Bool, Float, Int

RATIO = 0.5  # of a cluster's priority, that each of its parts is taken to have before it is known


@dataclass
class SplitTree:
    """Nodes of a binary tree, a parent before its parts. `children`: -1 of a leaf. `whole`: it cannot be split."""

    children: Int[Tensor, "T 2"]
    means: Float[Tensor, "T C"]
    sizes: Int[Tensor, "T"]
    inertia: Float[Tensor, "T"]
    depths: Int[Tensor, "T"]
    whole: Bool[Tensor, "T"]

    @classmethod
    def root(cls, n: int, inertia: float, channels: int) -> SplitTree:
        """All rows, about their mean, which is the origin."""
        size, error = torch.tensor([n]), torch.tensor([inertia], dtype=torch.float64)
        means = torch.zeros(1, channels, dtype=torch.float64)
        return cls(torch.full((1, 2), -1), means, size, error, torch.zeros(1, dtype=torch.long), size == 1)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SplitTree:
        """What `tensors` gave."""
        return cls(**{name: tensors[name] for name in cls.__dataclass_fields__})

    def tensors(self) -> dict[str, Tensor]:
        """All there is, as named tensors."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __len__(self) -> int:
        return len(self.children)

    @property
    def leaves(self) -> int:
        """How many clusters there are."""
        return int((self.children[:, 0] < 0).sum())

    def _priority(self, strategy: str) -> Float[Tensor, "T"]:
        """The greater, the sooner a node is split; a part never has more than the whole."""
        found = self.inertia if strategy == "biggest_inertia" else self.sizes.double()
        return torch.where(self.whole, -torch.inf, found)

    def wanted(self, count: int, strategy: str) -> Int[Tensor, "S"]:
        """The leaves that are split at once: those that will be among the `count - 1` greatest, sure or likely.

        A leaf is wanted if nodes that come before it leave it a place. Parts of the leaves before it count among
        them, where halving would leave them greater than it. The greatest leaf is always wanted, unless the
        `count - 1` greatest nodes are split already: then there is none.
        """
        priority = self._priority(strategy)
        leaf = (self.children[:, 0] < 0) & ~self.whole
        at = leaf.nonzero().flatten()
        at = at[priority[at].argsort(descending=True, stable=True)]
        values, inner = priority[at], priority[self.children[:, 0] >= 0].sort(descending=True).values
        if not len(at) or count < 2:
            return at[:0]
        # ahead: how many split nodes come before a leaf; where they come level, the split one does
        ahead = torch.searchsorted(-inner, -values, right=True)
        if int(ahead[0]) >= count - 1:
            return at[:0]
        low, high = 1, len(at)
        while low < high:  # the longest list in which the last one has a place
            middle = (low + high + 1) // 2
            before = values[: middle - 1] / values[middle - 1].clamp(min=torch.finfo(values.dtype).tiny)
            levels = (before.clamp(min=1).log() / -torch.tensor(RATIO).log()).floor().clamp(max=40)
            places = int(ahead[middle - 1]) + float((2.0 ** (levels + 1) - 1).sum())
            low, high = (middle, high) if places < count - 1 else (low, middle - 1)
        return at[:low].sort().values

    def grow(
        self,
        batch: Int[Tensor, "S"],
        split: Bool[Tensor, "S"],
        means: Float[Tensor, "S 2 C"],
        sizes: Int[Tensor, "S 2"],
        inertia: Float[Tensor, "S 2"],
    ) -> Int[Tensor, "S"]:
        """Give the nodes of a batch their two parts each, but for those that are not `split`; the first of each."""
        self.whole[batch[~split]] = True
        own = batch[split]
        first = torch.full((len(batch),), -1)
        first[split] = len(self) + 2 * torch.arange(len(own))
        self.children[own] = torch.stack((first[split], first[split] + 1), 1)
        self.children = torch.cat((self.children, torch.full((2 * len(own), 2), -1)))
        self.means = torch.cat((self.means, means[split].flatten(0, 1)))
        self.sizes = torch.cat((self.sizes, sizes[split].flatten()))
        # rounding must not make a part greater than the whole: the order of splits rests on that
        error = torch.minimum(inertia[split], self.inertia[own][:, None])
        self.inertia = torch.cat((self.inertia, error.flatten()))
        self.depths = torch.cat((self.depths, (self.depths[own] + 1).repeat_interleave(2)))
        self.whole = torch.cat((self.whole, sizes[split].flatten() == 1))
        return first

    def cut(self, count: int, strategy: str) -> SplitTree:
        """The tree of the first `count - 1` splits, in the order of the splits, or of as many as are known."""
        inner = (self.children[:, 0] >= 0).nonzero().flatten()
        order = inner[self._priority(strategy)[inner].argsort(descending=True, stable=True)][: count - 1]
        old = torch.cat((torch.zeros(1, dtype=torch.long), self.children[order].flatten()))
        new = torch.full((len(self),), -1)
        new[old] = torch.arange(len(old))
        children = torch.full((len(old), 2), -1)
        children[new[order]] = new[self.children[order]]
        others = (self.means, self.sizes, self.inertia, self.depths, self.whole)
        return SplitTree(children, *(one[old] for one in others))
