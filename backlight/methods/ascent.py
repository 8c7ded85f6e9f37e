"""PullbackAscent and GradientAscent: the displacement of the input that follows its own explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from backlight.engine.paths import Ascent
from backlight.methods.method import Method
from backlight.methods.pullback import Softened


@dataclass(kw_only=True)
class GradientAscent(Method):
    """The input's displacement after `n_steps` normalised gradient steps; settings as in `engine.paths.Ascent`."""

    source: ClassVar[str] = "Semantic Pullbacks, section 3.3 (baseline)"
    formula: ClassVar[str] = "x_K - x_0, x_(k+1) = x_k + step * g_k / |g_k|, g_k = grad s(x_k)"
    passes: ClassVar[str] = "n_steps"
    moves_input: ClassVar[bool] = True

    n_steps: int = 5
    step: float | None = 20.0
    normalise: bool = True
    relative: bool = False
    radius: float | None = None
    box: tuple[Any, Any] | None = None
    project: str = "never"

    def path(self) -> Ascent:
        return Ascent(self.n_steps, self.step, self.normalise, self.relative, self.radius, self.box, self.project)


@dataclass(kw_only=True)
class PullbackAscent(Softened, GradientAscent):
    """The input's displacement after `n_steps` normalised soft-pullback steps; unprojected, as in the tables."""

    source: ClassVar[str] = "Semantic Pullbacks, section 3.3, equation 6"
    formula: ClassVar[str] = "x_K - x_0, x_(k+1) = x_k + step * g_k / |g_k|, g_k the soft pullback at x_k"
