"""What a federation knows: archetypes with their evidence, and the rank-s operator of the data seen."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.disentangle import sign

RETRIEVAL_STEPS = 50
BLOCK = 1 << 24  # entries of states held in floating point at once


@dataclass(frozen=True)
class RoundReport:
    """What the last round looked like. Rows of tensors are clients; NaN for one that took no part.

    Attributes:
        plasticity: `w_c [C]`, 0 for a client that the gate left out.
        entropy: `H_c [C]`, binary entropy of the agreement of a client's signal with memory, in bits.
        novelty: `nu_c [C]`, share of its signal that is new.
        examples: `M_c [C]` as they count (capped, without repeats), 0 for none.
        weights: `[C]`, each client's share of the operator after the round.
        rejected: client -> why its contribution was dropped.
        outliers: eigenvalues above the edge.
        edge: of the bulk, with its cushion.
        noise: `sigma^2` of the operator.
        effective_examples: `M_eff` that the operator averages over.
        plastic_share: `wbar`, share of new data in the operator.
        saturated: whether outliers fill more than half of the sketch. Then no archetypes are learned from
            the round: `sketch_rank` is too small for their number, or the examples are no noisy copies of a
            few patterns (raw images, say).
    """

    plasticity: Tensor
    entropy: Tensor
    novelty: Tensor
    examples: Tensor
    weights: Tensor
    rejected: dict[int, str] = field(default_factory=dict)
    outliers: int = 0
    edge: float = float("nan")
    noise: float = float("nan")
    effective_examples: float = 0.0
    plastic_share: float = 0.0
    saturated: bool = False

    @classmethod
    def empty(cls, clients: int) -> "RoundReport":
        """A report of no client at all."""
        nothing = torch.full((clients,), torch.nan, dtype=torch.float64)
        return cls(nothing, nothing, nothing, torch.zeros_like(nothing), torch.zeros_like(nothing))


@dataclass(frozen=True)
class Memory:
    """State of a federation after a round, or between its two exchanges. Never changed in place.

    Attributes:
        archetypes: `Z [K, N]`, int8 of +-1.
        evidence: `E [K]`, signal-to-noise of the direction in which each was found; `erf(sqrt(E/2))` is its
            expected overlap with the truth.
        vectors: `U [N, k]` of the data operator `D = U diag(lambda) U^T`, of trace 1.
        eigenvalues: `lambda [k]`, descending.
        outliers: how many of them stand above the edge.
        groups: `[G, 3]` examples, weight and noise of every client's round that is still in `D`.
        noise_variance: of each entry of `D U`, put on by differential privacy.
        round: finished rounds.
        exchange: 0 or 1, which one comes next.
        basis: `Q [N, s]` of exchange 1, padded with zero columns; `[N, 0]` before.
        weights: `[C]` of exchange 1: the share of the operator that the server gives to each client.
        table: `[C, F]` of exchange 0, kept for exchange 1.
        plasticity: `w_c [C]` of each client when it last took part (NaN: never).
        fingerprints: `[R, 4]` of recent contributions that counted, by which a replay is known.
        pending: `[P, N]` int8, archetypes that wait for support (`min_support` > 1).
        pending_evidence: `[P]`.
        support: `[P, C]` bool, which clients have seen them.
        report: the last round.

    Example:
        >>> memory = Memory.empty(100)
        >>> memory.retrieve(torch.ones(2, 100)).shape             # nothing to retrieve: cues as they are
        torch.Size([2, 100])
    """

    archetypes: Tensor
    evidence: Tensor
    vectors: Tensor
    eigenvalues: Tensor
    outliers: int
    groups: Tensor
    noise_variance: float
    round: int
    exchange: int
    basis: Tensor
    weights: Tensor
    table: Tensor
    plasticity: Tensor
    fingerprints: Tensor
    pending: Tensor
    pending_evidence: Tensor
    support: Tensor
    report: RoundReport

    @classmethod
    def empty(cls, neurons: int, config: FederationConfig | None = None) -> "Memory":
        """A memory of nothing.

        Raises:
            ValueError: for fewer than 2 neurons.
        """
        if neurons < 2:
            raise ValueError(f"neurons={neurons} must be at least 2")
        config = config or FederationConfig()
        clients, dtype = config.max_clients, config.torch_dtype
        numbers = torch.zeros(0, dtype=torch.float64)
        return cls(
            archetypes=torch.zeros(0, neurons, dtype=torch.int8),
            evidence=numbers,
            vectors=torch.zeros(neurons, 0, dtype=dtype),
            eigenvalues=numbers,
            outliers=0,
            groups=torch.zeros(0, 3, dtype=torch.float64),
            noise_variance=0.0,
            round=0,
            exchange=0,
            basis=torch.zeros(neurons, 0, dtype=dtype),
            weights=torch.zeros(clients, dtype=torch.float64),
            table=torch.zeros(clients, 0, dtype=torch.float64),
            plasticity=torch.full((clients,), torch.nan, dtype=torch.float64),
            fingerprints=torch.zeros(0, 4, dtype=torch.float64),
            pending=torch.zeros(0, neurons, dtype=torch.int8),
            pending_evidence=numbers,
            support=torch.zeros(0, clients, dtype=torch.bool),
            report=RoundReport.empty(clients),
        )

    @property
    def neurons(self) -> int:
        """`N`."""
        return self.archetypes.shape[1]

    @property
    def edge(self) -> float:
        """Bulk edge of the last round's operator."""
        return self.report.edge

    @property
    def outlier_vectors(self) -> Tensor:
        """`V [N, K^]`, eigenvectors of the operator above the edge."""
        return self.vectors[:, : self.outliers]

    def retrieve(self, cues: Tensor, steps: int = RETRIEVAL_STEPS) -> Tensor:
        """Completes noisy or partial patterns: pseudo-inverse dynamics, iterated in overlap space.

        `m <- Z sign(m G^+ Z) / N` with `G = Z Z^T / N`: the state is K numbers a cue, N is only streamed.

        Args:
            cues: `[B, N]` of +-1; entries of 0 are unknown.
            steps: most updates; a batch stops when none of its states changes.

        Returns:
            `[B, N]` of +-1, the cues' dtype; a tie is +1. The cues themselves while the memory is empty.

        Raises:
            ValueError: for cues of another width.
        """
        if cues.dim() != 2 or cues.shape[1] != self.neurons:
            raise ValueError(f"cues of shape {tuple(cues.shape)}: give [B, {self.neurons}]")
        if not len(self.archetypes) or not len(cues):
            return cues.clone()
        wide = torch.float64 if cues.dtype == torch.float64 else torch.float32
        z = self.archetypes.to(cues.device, wide)
        pattern = torch.linalg.pinv(z.double() @ z.double().T / self.neurons, hermitian=True).to(wide) @ z
        blocks = torch.split(cues, max(1, BLOCK // self.neurons))
        return torch.cat([_settle(block.to(wide), z, pattern, steps).to(cues.dtype) for block in blocks])

    def for_clients(self) -> "Memory":
        """The part that clients need, as broadcast by a server: no operator beyond its outliers."""
        return replace(
            self,
            vectors=self.outlier_vectors,
            eigenvalues=self.eigenvalues[: self.outliers],
            groups=torch.zeros(0, 3, dtype=torch.float64),
            table=self.table[:, :0],
            fingerprints=self.fingerprints[:0],
            report=RoundReport.empty(len(self.weights)),
        )

    def to(self, device: torch.device | str) -> "Memory":
        """The same memory with its large tensors on another device."""
        moved = {name: getattr(self, name).to(device) for name in LARGE}
        return replace(self, **moved)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types, for `torch.load(weights_only=True)`."""
        state = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "report"}
        report = {f.name: getattr(self.report, f.name) for f in fields(self.report)}
        return {**state, "report": report}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Memory":
        """The inverse of `state_dict`."""
        return cls(**{**state, "report": RoundReport(**state["report"])})


LARGE = ("archetypes", "vectors", "basis", "pending")


def _settle(state: Tensor, z: Tensor, pattern: Tensor, steps: int) -> Tensor:
    """Pseudo-inverse dynamics of a block of cues `[b, N]`."""
    n = z.shape[1]
    state = sign((state @ z.T / n) @ pattern)
    overlap = state @ z.T / n
    for _ in range(steps - 1):
        state = sign(overlap @ pattern)
        new = state @ z.T / n
        if torch.equal(new, overlap):
            break
        overlap = new
    return state
