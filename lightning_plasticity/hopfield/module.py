"""`FederatedHopfield`: the federation as a LightningModule, for processes, checkpoints and figures."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.federation import Contribution, client_step, server_step, zeros
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.retrieval import Retrieval
from lightning_plasticity.hopfield.spectrum import magnetisation
from lightning_plasticity.hopfield.trace import Trace
from lightning_plasticity.strategies import check_unsharded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONFIG = FederationConfig()


class FederatedHopfield(LightningModule):
    """A federated associative memory under a Trainer: an epoch is a round (Alessandrelli et al., 2026).

    A training batch is what one client brings to the round: `(examples [M, N] of +-1, client)`, or
    examples alone, which makes the `b`-th batch of process `p` client `b * processes + p`. Batches of one
    client in one epoch are joined; `M = 0` and client -1 are normal; a client beyond `config.max_clients`
    is left out with a warning. After the last batch come the round's two exchanges, each one all-reduced
    buffer of fixed size; the first process then acts as the server and sends the memory to the others, so
    that all have the same, bit for bit. A round is one step of a real optimizer: `max_steps` counts
    rounds. Checkpoints at the end of an epoch resume exactly.

    Validation and test batches are corrupted cues, `(cues [B, N], originals [B, N], labels [B])`; every
    process needs all of them, as those of `ArchetypeStream`.

    All processes belong to one owner here: a client's bad data are dropped and reported where they are, but
    contributions are summed unseen. A server that inspects messages is what `hopfield.flower` has.

    Logs `hopfield/archetypes`, `hopfield/outliers`, `hopfield/edge`, `hopfield/noise`, `hopfield/clients`,
    `hopfield/rejected`, `plasticity/entropy`, `plasticity/weight`, `plasticity/novelty` after each round, and
    `hopfield/val_overlap`, `..._overlap_min`, `..._found`, `..._spurious`, `..._retrieval` (`test_` for
    tests).

    Args:
        num_features: `N`.
        config: of the federation; also as the mapping that `FederationConfig.to_dict` gives.
        image_shape: height and width of an archetype as an image, for the figures; None: one row.
        plasticity: of all clients, in place of the controller's; None: the controller's.

    Attributes:
        memory: what is known.
        evidence: `[max_archetypes]`, how well each archetype is known, 0 where there is none.
        trace: what happened in each round.

    Raises:
        ValueError: if `image_shape` does not fit, or `plasticity` is not in [0, 1].
        MisconfigurationException: at the start of a fit, if the strategy is not supported or the data do not
            fit.

    Example:
        >>> model = FederatedHopfield(num_features=100)
        >>> model(torch.ones(2, 100)).shape                 # nothing known yet: cues come back as they are
        torch.Size([2, 100])
    """

    def __init__(
        self,
        num_features: int,
        config: FederationConfig = _CONFIG,
        image_shape: tuple[int, int] | None = None,
        plasticity: float | None = None,
    ) -> None:
        super().__init__()
        self.config = FederationConfig.from_dict(dict(config)) if isinstance(config, Mapping) else config
        settings = {"num_features": num_features, "config": self.config.to_dict()}
        self.save_hyperparameters({**settings, "image_shape": image_shape, "plasticity": plasticity})
        self.automatic_optimization = False
        if image_shape is not None and image_shape[0] * image_shape[1] != num_features:
            raise ValueError(f"image_shape={image_shape} does not have num_features={num_features} pixels")
        self.image_shape = image_shape or (1, num_features)
        self.memory = Memory.empty(num_features, self.config)
        # a parameter, as DDP and checkpoint callbacks know no training without one
        self.evidence = nn.Parameter(torch.zeros(self.config.max_archetypes, dtype=torch.float64))
        self.trace = Trace()
        self.set_plasticity(plasticity)
        self._hosted: dict[int, list[Tensor]] = {}
        self._cues = Retrieval()

    # --- what it stands for ---

    @torch.no_grad()
    def forward(self, cues: Tensor) -> Tensor:
        """Completes corrupted patterns, `[B, N]` to `[B, N]`."""
        return self.memory.to(cues.device).retrieve(cues)

    @property
    def plasticity_entropy(self) -> Tensor:
        """Mean entropy `H` (bits) of the last round's clients, 0-d; NaN if none took part."""
        report = self.memory.report
        return torch.where(report.plasticity.isnan(), torch.nan, report.entropy).nanmean()

    def set_plasticity(self, w: float | None) -> None:
        """Gives all clients this plasticity from the next round on; None hands over to the controller again.

        Raises:
            ValueError: if `w` is not in [0, 1].
        """
        if w is not None and not 0 <= w <= 1:
            raise ValueError(f"plasticity w={w} must be in [0, 1], or None for the controller")
        self._plasticity: float | None = None if w is None else float(w)

    def get_extra_state(self) -> dict[str, Any]:
        """The memory and the trace, as tensors and plain types."""
        return {
            "memory": self.memory.to("cpu").state_dict(),
            "trace": self.trace.state_dict(),
            "plasticity": self._plasticity,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        memory = Memory.from_state_dict(state["memory"])
        if memory.neurons != self.hparams["num_features"] or len(memory.weights) != self.config.max_clients:
            raise ValueError(
                f"the checkpoint has num_features={memory.neurons}, max_clients={len(memory.weights)}; the "
                f"model num_features={self.hparams['num_features']}, max_clients={self.config.max_clients}"
            )
        self.memory = memory
        self.trace = Trace(**state["trace"])
        self._plasticity = state["plasticity"]

    # --- learning ---

    def setup(self, stage: str) -> None:
        """Refuses strategies that would split the sums, and data of another size."""
        check_unsharded(self.trainer)
        data: Any = getattr(self.trainer, "datamodule", None)
        clients = getattr(data, "num_clients", 0)
        if clients > self.config.max_clients:
            raise MisconfigurationException(
                f"config.max_clients={self.config.max_clients}: the data have {clients} clients"
            )
        size = getattr(data, "num_features", self.hparams["num_features"])
        if size != self.hparams["num_features"]:
            raise MisconfigurationException(
                f"num_features={self.hparams['num_features']}: the data have {size}"
            )

    def configure_optimizers(self) -> Optimizer:
        """The optimizer whose step is a round."""
        return FederationRound([self.evidence])

    def on_train_epoch_start(self) -> None:
        """Begins a round."""
        self._hosted = {}

    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Takes in what a client brings; after the last one, the round."""
        examples, client = batch if isinstance(batch, list | tuple) else (batch, None)
        number = batch_idx * self.trainer.world_size + self.global_rank if client is None else int(client)
        if number >= self.config.max_clients:  # no error: other processes would wait for this one's sums
            warnings.warn(
                f"client {number} is left out: config.max_clients={self.config.max_clients}", stacklevel=2
            )
        elif number >= 0:
            self._hosted.setdefault(number, []).append(examples)
        if self.trainer.is_last_batch:
            optimizer: Any = self.optimizers()
            optimizer.step(closure=self._round)
            self.trace.record_round(self.memory)
            self._log_round()

    def _round(self) -> Tensor:
        """Two exchanges; the evidence afterwards, padded with zeros."""
        fixed = self._plasticity
        config = self.config if fixed is None else replace(self.config, controller=fixed)
        hosted = {client: _joined(parts) for client, parts in sorted(self._hosted.items())}
        memory = self.memory.to(self.device)
        with torch.autocast(
            self.device.type, enabled=False
        ):  # sketches keep their precision under any Trainer
            for _ in range(2):
                total = self._sum(_sum_of_clients(hosted, memory, config))
                memory = self._serve(total, memory, config)
        self.memory, self._hosted = memory, {}
        return nn.functional.pad(memory.evidence, (0, self.config.max_archetypes - len(memory.evidence)))

    def _sum(self, total: Contribution) -> Contribution:
        """The sum over processes, in one buffer."""
        if self.trainer.world_size == 1:
            return total
        buffer: Any = torch.cat([part.double().flatten() for part in total.values()])
        buffer = self.trainer.strategy.reduce(buffer, reduce_op="sum")
        parts = buffer.split([part.numel() for part in total.values()])
        return {
            name: new.view_as(part).to(part.dtype)
            for (name, part), new in zip(total.items(), parts, strict=True)
        }

    def _serve(self, total: Contribution, memory: Memory, config: FederationConfig) -> Memory:
        """The server's step; other processes take over the first one's, as libraries round differently."""
        if self.trainer.world_size == 1:
            return server_step(total, memory, config)
        state: dict[str, Any] = {}
        if self.global_rank == 0:
            state = server_step(total, memory, config).to("cpu").state_dict()
        return Memory.from_state_dict(self.trainer.strategy.broadcast(state)).to(self.device)

    def _log_round(self) -> None:
        report, here = self.memory.report, ~self.memory.report.plasticity.isnan()
        numbers = {
            "hopfield/archetypes": len(self.memory.archetypes),
            "hopfield/outliers": report.outliers,
            "hopfield/edge": report.edge,
            "hopfield/noise": report.noise,
            "hopfield/clients": int(here.sum()),
            "hopfield/rejected": len(report.rejected),
            "plasticity/entropy": float(self.plasticity_entropy),
            "plasticity/weight": float(report.plasticity.nanmean()),
            "plasticity/novelty": float(report.novelty[here].nanmean()),
        }
        shown = ("hopfield/archetypes", "plasticity/entropy")
        for name, value in numbers.items():
            # the same on every process, so there is nothing to average
            self.log(name, float(value), prog_bar=name in shown, on_step=False, on_epoch=True, batch_size=1)

    # --- scores ---

    def on_validation_epoch_start(self) -> None:
        """Begins a comparison."""
        self._cues = Retrieval()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Retrieves from a batch of cues."""
        cues, originals, labels = batch
        self._cues.add(self(cues), originals, labels)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Compares the memory with the archetypes behind the cues."""
        overlaps = self._log_scores("val")
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self.trace.record_overlaps(self.memory.round - 1, overlaps, self._cues.accuracy)

    def on_test_epoch_end(self) -> None:
        """Compares the memory with the archetypes behind the cues."""
        self._log_scores("test")

    def _log_scores(self, part: str) -> Tensor:
        overlaps, scores = self._cues.scores(self.memory.archetypes.cpu())
        for name, value in scores.items():
            self.log(f"hopfield/{part}_{name}", float(value), batch_size=1, sync_dist=True)
        return overlaps

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Completes a batch of cues."""
        return self.forward(batch if isinstance(batch, Tensor) else batch[0])

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The archetypes: evidence, and the overlap with the truth that it promises."""
        known = self.memory.evidence
        promised = enumerate(zip(known.tolist(), magnetisation(known).tolist(), strict=True))
        return {"archetypes": [{"archetype": i, "evidence": e, "overlap": m} for i, (e, m) in promised]}

    def figures(self) -> Mapping[str, "Figure"]:
        """Spectrum, archetypes, magnetisation over rounds, entropy and plasticity over rounds."""
        from lightning_plasticity.hopfield.figures import of_module

        return of_module(self)


class FederationRound(Optimizer):
    """A round as an optimizer's step: `step(closure)` keeps the evidence that the closure returns.

    Args:
        params: one parameter, the evidence.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the round that the closure is."""
        if closure is None:
            raise ValueError("step needs a closure that runs the round and returns the evidence")
        evidence = closure()
        self.param_groups[0]["params"][0].copy_(evidence)
        return evidence


def _joined(parts: list[Tensor]) -> Tensor:
    """A client's batches as one; of unlike widths the first wrong one stands for all, and is rejected."""
    if len(parts) == 1 or all(p.ndim == 2 and p.shape[1] == parts[0].shape[1] for p in parts):
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    return next(p for p in parts if p.shape[1:] != parts[0].shape[1:] or p.ndim != 2)


def _sum_of_clients(hosted: Mapping[int, Tensor], memory: Memory, config: FederationConfig) -> Contribution:
    """What the clients of this process send, in the order of their numbers."""
    device = memory.archetypes.device
    total = zeros(memory, config, device)
    for client, examples in hosted.items():
        for name, part in client_step(examples.to(device), memory, config, client_id=client).items():
            total[name] += part
    return total
