"""From the operator's outliers to what the memory keeps: admit, match, replace, delete, cap."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.disentangle import (
    SAME,
    candidates,
    independent,
    pure_score,
    purity_threshold,
)
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.privacy import noise_to_signal
from lightning_plasticity.hopfield.spectrum import Bulk, evidence, magnetisation

LEAST_EVIDENCE = 3.84  # admits only what theory expects at an overlap of .95 or more
SUPERSEDED = 0.5  # score of a memory that the operator sees, though all its outliers are other archetypes


@dataclass(frozen=True)
class Found:
    """Archetypes of this round's operator: `states [n, N]` int8, `evidence [n]`, and whether they are all."""

    states: Tensor
    evidence: Tensor
    complete: bool


def find_archetypes(memory: Memory, bulk: Bulk, examples: float, config: FederationConfig) -> Found:
    """Pure, well-known and independent states in the span of the operator's outliers.

    Args:
        memory: with this round's operator.
        bulk: its edge and noise.
        examples: `M_eff`.
        config: of the disentangler.
    """
    v, lam = memory.outlier_vectors, memory.eigenvalues[: memory.outliers].double()
    if not len(lam):
        return Found(memory.archetypes[:0], memory.evidence[:0], complete=False)
    weakest = float(_known(lam[-1:], memory, bulk, examples))
    least = weakest / (1 + weakest) if weakest >= LEAST_EVIDENCE else 0.0
    states, scores = candidates(v, config.seed + memory.round, config.disentangler, least)
    if not len(states):
        return Found(states, scores, complete=False)
    part = (states.to(v.dtype) @ v).double() ** 2
    known = _known((part @ lam.to(part)) / part.sum(1), memory, bulk, examples)
    gamma = known / (1 + known)
    good = (scores > purity_threshold(gamma)) & (known >= LEAST_EVIDENCE)
    states, scores, known, gamma = states[good], scores[good], known[good], gamma[good]
    order = (-scores / pure_score(gamma)).argsort(stable=True)
    keep = order[_separate(states[order], known[order], memory.outliers)]
    return Found(states[keep], known[keep].cpu(), complete=len(keep) == memory.outliers)


def _known(eigenvalues: Tensor, memory: Memory, bulk: Bulk, examples: float) -> Tensor:
    """Evidence of directions with these eigenvalues, less what noise of differential privacy hides."""
    known = evidence(eigenvalues, bulk.noise, memory.neurons, examples)
    if not memory.noise_variance:
        return known
    std, width = memory.noise_variance**0.5, memory.vectors.shape[1]
    return 1 / (1 / known.clamp(min=1e-12) + noise_to_signal(eigenvalues, std, memory.neurons, width))


def same(states: Tensor, state: Tensor, known: Tensor, own: Tensor) -> Tensor:
    """Whether a state is one of `states [K, N]`: `|overlap| > .9 m_i m_j`; -xi is the same memory as xi."""
    overlap = (states.to(torch.float32) @ state.to(torch.float32)).abs().double().cpu() / states.shape[1]
    return overlap > SAME * (magnetisation(known) * magnetisation(own)).cpu()


def _separate(states: Tensor, known: Tensor, most: int) -> list[int]:
    """Greedy choice, in order, of states that are neither an earlier one nor in the span of earlier ones."""

    def duplicate(i: int, chosen: list[int]) -> bool:
        return bool(same(states[chosen], states[i], known[chosen], known[i]).any())

    return independent(states, most, duplicate)


def consolidate(memory: Memory, found: Found, fresh: float, config: FederationConfig) -> Memory:
    """Updates the archetypes by what this round's operator shows.

    A match replaces its memory if it is better known than the memory's evidence, discounted by the share of
    new data; memories that are not seen keep theirs for ever. Once every outlier is a pure archetype, a
    memory that lies in their span without being one of them has been superseded, and is deleted.

    Args:
        memory: with this round's operator.
        found: its archetypes.
        fresh: `wbar`.
        config: of support and cap.
    """
    archetypes, known = memory.archetypes.clone(), memory.evidence.clone()
    seen, new = set[int](), list[int]()
    for i, state in enumerate(found.states):
        match = _closest(archetypes, state, known, found.evidence[i])
        if match is None:
            new.append(i)
            continue
        seen.add(match)
        old = known[match] * (1 - fresh)
        if found.evidence[i] >= old:
            archetypes[match] = _aligned(state, archetypes[match])
        known[match] = torch.maximum(old, found.evidence[i])
    if found.complete:
        score = ((archetypes.to(memory.vectors) @ memory.outlier_vectors) ** 2).sum(1) / memory.neurons
        stay = [j for j in range(len(archetypes)) if j in seen or float(score[j]) < SUPERSEDED]
        archetypes, known = archetypes[stay], known[stay]
    memory = replace(memory, archetypes=archetypes, evidence=known)
    states, values = found.states[new], found.evidence[new]
    return (
        _wait(memory, states, values, config)
        if config.min_support > 1
        else admit(memory, states, values, config)
    )


def _closest(states: Tensor, state: Tensor, known: Tensor, own: Tensor) -> int | None:
    """Index of the memory that the state is, if any."""
    if not len(states):
        return None
    overlap = (states.to(torch.float32) @ state.to(torch.float32)).abs()
    best = int(overlap.argmax())
    return best if bool(same(states[best : best + 1], state, known[best : best + 1], own)) else None


def _aligned(state: Tensor, reference: Tensor) -> Tensor:
    """The state or its negative, whichever is closer to the reference: a memory keeps its sign."""
    return state if int((state.int() * reference.int()).sum()) >= 0 else -state


def admit(memory: Memory, states: Tensor, known: Tensor, config: FederationConfig) -> Memory:
    """Adds archetypes, then keeps the best known ones that are neither duplicates nor in others' span."""
    states, known = torch.cat([memory.archetypes, states]), torch.cat([memory.evidence, known])
    order = (-known).argsort(stable=True)
    keep = sorted(order[_separate(states[order], known[order], config.max_archetypes)].tolist())
    return replace(memory, archetypes=states[keep], evidence=known[keep])


def _wait(memory: Memory, states: Tensor, known: Tensor, config: FederationConfig) -> Memory:
    """Puts archetypes on the list that clients vote on in the next round."""
    pending, values, support = memory.pending.clone(), memory.pending_evidence.clone(), memory.support
    for state, own in zip(states, known, strict=True):
        match = _closest(pending, state, values, own)
        if match is None:
            pending, values = torch.cat([pending, state[None]]), torch.cat([values, own[None]])
            support = torch.cat([support, torch.zeros_like(memory.weights, dtype=torch.bool)[None]])
        else:
            pending[match], values[match] = _aligned(state, pending[match]), own
    best = sorted((-values).argsort(stable=True)[: config.max_archetypes].tolist())
    return replace(memory, pending=pending[best], pending_evidence=values[best], support=support[best])


def count_votes(memory: Memory, votes: Tensor, config: FederationConfig) -> Memory:
    """Adds this round's votes `[C, P]` on pending archetypes, and admits those with enough support."""
    waiting = len(memory.pending)
    if not waiting:
        return memory
    support = memory.support | (votes[:, :waiting].T > 0.5).to(memory.support.device)
    ready = support.sum(1) >= config.min_support
    memory = admit(memory, memory.pending[ready], memory.pending_evidence[ready], config)
    return replace(
        memory,
        pending=memory.pending[~ready],
        pending_evidence=memory.pending_evidence[~ready],
        support=support[~ready],
    )
