"""The local learning rule of every plastic map, as a torch optimizer.

    delta = (s - r) f'(V)                    the dendrite learns to predict its soma
    PI   <- (1 - a) PI + a delta I^T         a = dt / tau: plasticity induction, 100 ms of memory
    W    <- W + eta (PI - L2 W - L1 sign W)  eta per step, not per second

Without L1 and L2 and at a constant eta this is a plain delta rule on hidden weights that the synapses follow:
`U <- U + eta delta I^T; W <- W + a (U - W)` with `U = W + eta (1 - a) / a PI` (`hidden_weights`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_plasticity.hippocampus.settings import Settings

Reduction = Literal["mean", "sum"]


@torch.no_grad()
def learn_(
    weight: Tensor,
    induction: Tensor,
    delta: Tensor,
    presynaptic: Tensor,
    *,
    eta: float,
    trace_rate: float,
    l1: float = 0.0,
    l2: float = 0.0,
    scale: float = 1.0,
) -> None:
    """One step of the rule, in place. A map with `eta=0` stands still, its induction too.

    Args:
        weight: W `[M, n, m]`.
        induction: PI, likewise.
        delta: postsynaptic difference `[M, n, B]`.
        presynaptic: I `[M, m, B]`.
        eta: learning rate per step.
        trace_rate: `a`.
        l1: decay by a constant.
        l2: decay in proportion.
        scale: factor of `delta I^T`, which is summed over the `B` agents: 1 / B for their mean.
    """
    if eta == 0:
        return
    induction.baddbmm_(delta, presynaptic.transpose(1, 2), beta=1 - trace_rate, alpha=trace_rate * scale)
    if l1 or l2:
        weight.sub_(weight * (eta * l2) + weight.sign() * (eta * l1))
    weight.add_(induction, alpha=eta)


def hidden_weights(weight: Tensor, induction: Tensor, eta: float, trace_rate: float) -> Tensor:
    """`U = W + eta (1 - a) / a PI`: the weights that a plain delta rule would have, see above.

    Where `eta` changes, U changes with it; so PI is what is stored.

    Args:
        weight: W.
        induction: PI, likewise.
        eta: learning rate per step.
        trace_rate: `a`.
    """
    return weight + induction * (eta * (1 - trace_rate) / trace_rate)


class LocalPlasticity(Optimizer):
    """Local learning of named maps; no gradient is involved.

    `accumulate(name, delta, presynaptic)` applies the rule to one map at one simulated step. `step()` closes
    a chunk of steps, so that one training step of Lightning is one step of an optimizer: `max_steps`,
    checkpoints and schedulers count chunks. Each map is a parameter group with the keys `name`, `lr` (eta per
    step; 0 freezes the map), `tau`, `dt`, `l1`, `l2` and `reduction`; `state[W]["induction"]` is its PI.

    Args:
        maps: name -> W `[M, n, m]`.
        lr: eta of all maps, or of each.
        tau: seconds; 0 for an induction without memory.
        dt: seconds of a step.
        l1: of each map; 0 where it is not named.
        l2: of each map; 0 where it is not named.
        reduction: over agents: `"mean"`, or `"sum"`, which learns faster the more there are.

    Raises:
        ValueError: if a setting is out of range or names a map that isn't there.

    Example:
        >>> weight = torch.zeros(1, 1, 2)
        >>> rule = LocalPlasticity({"w": weight}, lr=0.1, tau=0.1, dt=0.025)
        >>> rule.accumulate("w", delta=torch.ones(1, 1, 1), presynaptic=torch.tensor([[[1.0], [2.0]]]))
        >>> rule.step()
        >>> weight                                        # eta a delta I = 0.1 * 0.25 * [1, 2]
        tensor([[[0.0250, 0.0500]]])
    """

    def __init__(
        self,
        maps: Mapping[str, Tensor],
        lr: float | Mapping[str, float] = 0.01,
        tau: float = 0.1,
        dt: float = 0.025,
        l1: Mapping[str, float] | None = None,
        l2: Mapping[str, float] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        rates = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(maps, lr)
        decays = {"l1": dict(l1 or {}), "l2": dict(l2 or {})}
        for key, given in {"lr": rates, **decays}.items():
            unknown = sorted(set(given) - set(maps))
            if unknown or not all(value >= 0 for value in given.values()):
                raise ValueError(
                    f"{key}={given}: numbers that are not negative, for the maps {', '.join(maps)}"
                )
        if not dt > 0 or not tau >= 0:
            raise ValueError(f"dt={dt} must be positive and tau={tau} not negative")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r} must be 'mean' or 'sum'")
        groups = [
            {
                "params": [weight],
                "name": name,
                "lr": float(rates.get(name, 0.0)),
                "l1": float(decays["l1"].get(name, 0.0)),
                "l2": float(decays["l2"].get(name, 0.0)),
            }
            for name, weight in maps.items()
        ]
        super().__init__(groups, {"lr": 0.0, "tau": tau, "dt": dt, "reduction": reduction})
        self.scale = 1.0
        """Further factor of every `delta I^T`; see `sync="sum"` of the module."""
        self.reduce: Callable[[Tensor], Tensor] | None = None
        """Called on the induction of every step, to average it over processes; None: leaves it alone."""
        for group in self.param_groups:
            weight = group["params"][0]
            self.state[weight]["induction"] = torch.zeros_like(weight, requires_grad=False)

    @classmethod
    def of(
        cls, settings: Settings, maps: Mapping[str, Tensor], reduction: Reduction = "mean"
    ) -> "LocalPlasticity":
        """Gives the rule of a preset."""
        rates = {name: settings.eta.get(name, 0.0) for name in maps}
        return cls(maps, rates, settings.tau, settings.dt, settings.l1, settings.l2, reduction)

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """The parameter groups by name."""
        return {group["name"]: group for group in self.param_groups}

    def induction(self, name: str) -> Tensor:
        """PI of a map, likewise shaped."""
        found: Tensor = self.state[self.groups[name]["params"][0]]["induction"]
        return found

    def rule(self, name: str, agents: int = 1) -> dict[str, float]:
        """The arguments of `learn_` for a map."""
        group = self.groups[name]
        scale = self.scale / (agents if group["reduction"] == "mean" else 1)
        trace_rate = min(1.0, group["dt"] / group["tau"]) if group["tau"] else 1.0
        return {
            "eta": float(group["lr"]),
            "trace_rate": trace_rate,
            "l1": group["l1"],
            "l2": group["l2"],
            "scale": scale,
        }

    @torch.no_grad()
    def accumulate(self, name: str, delta: Tensor, presynaptic: Tensor) -> None:
        """Applies the rule to one map at one simulated step, in place.

        Args:
            name: of the map.
            delta: `[M, n, B]`.
            presynaptic: `[M, m, B]`.
        """
        rule = self.rule(name, delta.shape[-1])
        if rule["eta"] == 0:
            return
        weight, induction = self.groups[name]["params"][0], self.induction(name)
        if self.reduce is not None:
            outer = self.reduce(delta @ presynaptic.transpose(1, 2) * rule["scale"])
            count = outer.shape[2]
            delta, presynaptic = outer, torch.eye(count, dtype=outer.dtype, device=outer.device)
            presynaptic = presynaptic.expand(len(outer), count, count)
            rule["scale"] = 1.0
        learn_(weight, induction, delta, presynaptic, **rule)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Closes a chunk; the maps have been written step by step."""
        return None if closure is None else closure()
