"""What a federation agrees on before its first round."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lightning_plasticity.hopfield.privacy import DifferentialPrivacy

CONTROLLERS = ("spectral_entropy", "entropy", "agreement")
DISENTANGLERS = ("l1", "lam")
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class FederationConfig:
    """Settings shared by the server and all clients; plain types only.

    Args:
        sketch_rank: `s`, columns of a sketch, at most `N` are used. At least twice the archetypes expected.
        max_archetypes: most archetypes that the memory keeps, by evidence.
        max_clients: rows of the table of clients; `client_id` is in `0 .. max_clients - 1`.
        seed: of the shared orthonormal basis and of the disentangler's starts.
        controller: `"spectral_entropy"` (default), `"entropy"` (the paper's rule), `"agreement"` (that of the
            paper's figure with an attacker), or a number in [0, 1], the same plasticity for all.
        w_max: plasticity of a client whose signal is half known, half new, or all new.
        gate: whether a client without any signal of its own leaves the average.
        disentangler: `"l1"` or the paper's layered dynamics `"lam"`.
        min_support: clients that must see an archetype before it is remembered.
        quality: `r` in (0, 1], which the paper's two rules need to know; ours do not.
        smoothing: `alpha` in (0, 1] of `w <- alpha w + (1 - alpha) w_previous`; 1 is none.
        horizon: a round counts at least `1 / (1 + horizon)`, however much was seen before.
        min_examples: a client with fewer examples in a round keeps them to itself.
        pull_cap: one client's examples count at most this many times those of the median client. That bounds
            what a lie about its size can do; up to the bound, sizes are believed.
        dtype: of sketches; `"float32"` halves memory and traffic.
        dp: differential privacy, or None.

    Raises:
        ValueError: for a setting out of range.

    >>> FederationConfig(sketch_rank=64, controller=0.5).sketch_width(neurons=32)
    32
    """

    sketch_rank: int = 128
    max_archetypes: int = 64
    max_clients: int = 64
    seed: int = 0
    controller: float | str = "spectral_entropy"
    w_max: float = 0.5
    gate: bool = True
    disentangler: str = "l1"
    min_support: int = 1
    quality: float = 0.8
    smoothing: float = 1.0
    horizon: float = 10.0
    min_examples: int = 1
    pull_cap: float = 10.0
    dtype: str = "float64"
    dp: DifferentialPrivacy | None = None

    def __post_init__(self) -> None:
        for name in ("max_archetypes", "max_clients", "min_support", "min_examples"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.sketch_rank >= 4:
            raise ValueError(
                f"sketch_rank={self.sketch_rank} must be at least 4: two columns watch the noise"
            )
        self._check_choices()
        for name in ("quality", "smoothing", "w_max"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in (0, 1]")
        for name in ("horizon", "pull_cap"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number of at least 1")
        if self.dp is not None and self.min_support > 1:
            raise ValueError(
                f"min_support={self.min_support} with dp: votes of single clients are not private; use 1"
            )

    def _check_choices(self) -> None:
        if isinstance(self.controller, str):
            if self.controller not in CONTROLLERS:
                raise ValueError(f"controller={self.controller!r}: use one of {CONTROLLERS} or a number")
        elif not 0 <= self.controller <= 1:
            raise ValueError(f"controller={self.controller} as a fixed plasticity must be in [0, 1]")
        if self.disentangler not in DISENTANGLERS:
            raise ValueError(f"disentangler={self.disentangler!r}: use one of {DISENTANGLERS}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: use one of {DTYPES}")
        if self.min_support > self.max_clients:
            raise ValueError(f"min_support={self.min_support} exceeds max_clients={self.max_clients}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of sketches."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def sketch_width(self, neurons: int) -> int:
        """Columns of a sketch of `neurons` rows."""
        return min(self.sketch_rank, neurons)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint or a message."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "FederationConfig":
        """The inverse of `to_dict`."""
        dp = settings.get("dp")
        return cls(**{**settings, "dp": DifferentialPrivacy(**dp) if isinstance(dp, dict) else dp})
