"""`HippocampalFormation`: the theta-gated Helmholtz machine as a LightningModule."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.hippocampus import dynamics, native
from lightning_plasticity.hippocampus.annealing import Annealing, chunks_of
from lightning_plasticity.hippocampus.checkpoints import Checkpoints
from lightning_plasticity.hippocampus.dynamics import Inputs, State, Trace
from lightning_plasticity.hippocampus.environment import (
    Environment,
    PlaceFields,
    initial_weights,
    make_environment,
)
from lightning_plasticity.hippocampus.gate import Gate
from lightning_plasticity.hippocampus.interventions import Interventions
from lightning_plasticity.hippocampus.plasticity import LocalPlasticity, Reduction
from lightning_plasticity.hippocampus.processes import Processes
from lightning_plasticity.hippocampus.recorder import Recorder
from lightning_plasticity.hippocampus.settings import Preset, preset
from lightning_plasticity.metrics.prediction_error import following

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Chunk = Mapping[str, Tensor]

ERROR_TAU, ERROR_SKIP = 60.0, 0.4  # seconds: of the averaged prediction error, and before it begins


class HippocampalFormation(Checkpoints, Interventions, Processes, LightningModule):  # type: ignore[misc]
    """A generative model of the hippocampal formation that learns with theta (George et al., NeurIPS 2023).

    Pyramidal cells of two layers, HPC and MEC, have a basal dendrite (inference) and an apical one
    (generative). A theta gate decides which of them drives the somas; the other learns to predict its soma,
    by a local rule. Batches are chunks of whole theta cycles, from `TrackData` or `LatentData`; each is one
    training step.

    Args:
        preset: `track`, `latents`, `remap`: the authors' settings; `track_tuned` and `remap_anchored`: ours.
        models: `M`, independent models of the seeds `seed`, `seed + 1` ..., run at once.
        agents: `B`, animals that share a model; what they learn is averaged.
        seed: of weights, environment and noise.
        overrides: settings that differ from the preset, by the names in `Settings`.
        engine: `native` (compiled, CPU, one agent), `eager` (plain torch), or `auto`: native where it can.
        reduction: of the updates over agents, `mean` or `sum`.
        sync: of processes: `mean` or `sum` of what they learned in each chunk, or `none`: independent models.
        sync_every: `chunk`, or `step`: as one process with all agents would have it; slow, eager.

    Attributes:
        weights: the plastic maps `[M, n, m]`: `hpc_apical`, `mec_basal`, `mec_recurrent`, `mec_right`,
            `mec_left`; the last column of the first two is the bias, if there is one.
        state: rates, noise and the step.
        gate: the theta gate.
        environment: what the features are made of.

    Raises:
        ValueError: if an argument is out of range.
        MisconfigurationException: at the start of a fit, if the Trainer cannot run it.

    Example:
        >>> model = HippocampalFormation("track_tuned", models=2)
        >>> model.weights["mec_recurrent"].shape, model.mode
        (torch.Size([2, 100, 100]), 'theta')
        >>> _ = model.freeze("mec_recurrent")
        >>> model.rate_map("mec", "wake", torch.linspace(0, 1, 50)).shape      # models, cells, positions
        torch.Size([2, 100, 50])
    """

    gate: Gate
    state: State
    environment: Environment
    environment_seeds: list[int]
    error: Tensor

    def __init__(
        self,
        preset: Preset = "track_tuned",
        models: int = 1,
        agents: int = 1,
        seed: int = 0,
        overrides: dict[str, Any] | None = None,
        engine: Literal["auto", "native", "eager"] = "auto",
        reduction: Reduction = "mean",
        sync: Literal["mean", "sum", "none"] = "mean",
        sync_every: Literal["chunk", "step"] = "chunk",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        _check(models, agents, engine, reduction, sync, sync_every)
        self.settings = _preset(preset).replace(**(overrides or {}))
        self.models, self.agents, self.seed = models, agents, seed
        self.engine, self.reduction, self.sync, self.sync_every = engine, reduction, sync, sync_every
        self.gate = Gate(self.settings.sleep_steps, self.settings.wake_steps, seed=seed)
        self.eta = {name: self.settings.eta.get(name, 0.0) for name in self.settings.maps}
        self.weights = nn.ParameterDict()
        self.lesions: list[str] = []
        self.recorder = Recorder()
        self.annealing = Annealing(self.settings.anneal_from, self.settings.anneal_to)
        self._draw(rank=0)

    def _draw(self, rank: int) -> None:
        """Draws everything random of this process's models."""
        self.seeds = self._seeds_of(rank)
        self.environment_seeds = list(self.seeds)
        weights = initial_weights(self.settings, self.seeds)
        if not self.weights:
            self.weights = nn.ParameterDict({name: nn.Parameter(weight) for name, weight in weights.items()})
        with torch.no_grad():
            for name, weight in weights.items():
                self.weights[name].copy_(torch.zeros_like(weight) if name in self.lesions else weight)
        like = self.weights["hpc_apical"]
        self.environment = make_environment(self.settings, self.seeds)
        self.environment = self.environment.with_tensors(
            {name: tensor.to(like) for name, tensor in self.environment.tensors().items()}
        )
        self.state = State.zeros(self.settings, self.models, self.agents, like.dtype, like.device)
        self.error = torch.zeros(self.models, 2, dtype=like.dtype, device=like.device)
        self._generators = [generator_for(seed, stream=5) for seed in self.seeds]

    def _seeds_of(self, rank: int) -> list[int]:
        return [self.seed + rank * self.models + model for model in range(self.models)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HippocampalFormation":
        """Moves the stream's state, too, which is kept out of the buffers that DDP overwrites."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.state, self.error = self.state.map(fn), fn(self.error)
        moved = {name: fn(tensor) for name, tensor in self.environment.tensors().items()}
        self.environment = self.environment.with_tensors(moved)
        return self

    # --- what it stands for ---

    @torch.no_grad()
    def infer(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Basal rates without noise: p and g of features `[M, n_p, ...]`, as in wake."""
        rates, _ = dynamics.activate(dynamics.apply_map(self.weights["mec_basal"], features), self.settings)
        return features, rates

    @torch.no_grad()
    def generate(self, g: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apical rates without noise: p and the next g of MEC rates `[M, n_g, B]`, as in sleep.

        Args:
            g: MEC rates.
            c: conjunctive rates `[M, 2 n_g, B]`; None: those of an animal that stands still.
        """
        settings = self.settings
        if c is None:
            c = g[:, :0]
            if settings.conjunctive:
                c = dynamics.conjunctive_rates(g, torch.zeros_like(g[:, 0]), settings)
        potential = dynamics.apical_potential(dict(self.weights), g, c)
        return dynamics.apply_map(self.weights["hpc_apical"], g), dynamics.activate(potential, settings)[0]

    def rate_map(
        self, layer: Literal["hpc", "mec"], phase: Literal["wake", "sleep"], positions: Tensor
    ) -> Tensor:
        """Rates over the track `[M, cells, X]`: basal ones, or what apical dendrites make of the basal MEC's.

        Args:
            layer: `hpc` or `mec`.
            phase: `wake` or `sleep`.
            positions: metres `[X]`.
        """
        if not isinstance(self.environment, PlaceFields):
            raise ValueError(f"a rate map needs a track, task={self.settings.task!r} has none")
        if layer not in ("hpc", "mec") or phase not in ("wake", "sleep"):
            raise ValueError(f"layer={layer!r}, phase={phase!r}: hpc or mec, wake or sleep")
        positions = positions.to(self.state.p).view(1, 1, -1)
        inferred = self.infer(self.environment.features(positions)[0])
        return (inferred if phase == "wake" else self.generate(inferred[1]))[layer == "mec"]

    # --- running ---

    def features(self, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """Features `[T, M, n_p, B]` and velocity cells' rates `[T, M, B]` of a chunk of data."""
        settings = self.settings
        wanted = "position" if settings.task == "track" else "latents"
        if wanted not in chunk:
            raise ValueError(f"a chunk for task={settings.task!r} needs {wanted!r}, got {sorted(chunk)}")
        like = self.state.p
        z = self.environment.features(chunk[wanted].to(like))
        if settings.task == "latents":
            return z, None
        velocity = chunk["coming"].to(like) / settings.full_speed  # the walk has its new velocity already
        return z, velocity.expand(len(velocity), z.shape[1], z.shape[3])

    def draw_noise(self, steps: int, agents: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Standard normal numbers of all dendrites `[steps, M, 2 n_p + 2 n_g, agents]`."""
        size = (steps, 2 * (self.settings.hpc + self.settings.mec), agents)
        # float32 whatever the precision, whose numbers would be others
        drawn = [torch.randn(size, generator=generator, dtype=torch.float32) for generator in generators]
        return torch.stack(drawn, 1).to(self.state.p)

    def run(
        self,
        chunk: Chunk,
        state: State,
        gate: Gate,
        noise: Tensor | None = None,
        rule: LocalPlasticity | None = None,
        watch: Callable[[dynamics.Dendrites], None] | None = None,
    ) -> tuple[State, Trace]:
        """Runs a chunk from a state; the module's own state stays as it is.

        Args:
            chunk: of data.
            state: to start from; its agents are those of the chunk.
            gate: which dendrites drive.
            noise: standard normal numbers, see `draw_noise`; None: no noise.
            rule: of learning; None: the weights stay as they are.
            watch: called with all dendrites' rates after each step; makes the run eager.
        """
        features, speed = self.features(chunk)
        inputs = Inputs(features, speed, gate.fractions(state.step, len(features)), noise)
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        reduces = rule is not None and rule.reduce is not None
        if watch is None and not reduces and self.engine != "eager":
            reason = native.why_not(weights, state)
            if reason is None:
                return native.unroll(self.settings, weights, state, inputs, rule)
            if self.engine == "native":
                raise ValueError(f"engine='native' cannot run this: {reason}; use engine='eager' or 'auto'")
        with torch.no_grad():
            learn = None if rule is None else rule.accumulate
            return dynamics.unroll(self.settings, weights, state, inputs, learn, watch)

    # --- learning ---

    def configure_optimizers(self) -> Any:
        """The local rule, and a scheduler that anneals its rates over the run."""
        rule = LocalPlasticity.of(self.settings, dict(self.weights.items()), self.reduction)
        for name, group in rule.groups.items():
            group["lr"] = group["initial_lr"] = self.eta[name]
        self.annealing.total = chunks_of(self.trainer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(rule, [self.annealing] * len(rule.param_groups))
        return {"optimizer": rule, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Chunk, batch_idx: int) -> None:
        """Runs and learns a chunk of whole theta cycles."""
        steps, models, *_, agents = next(iter(batch.values())).shape
        if (models, agents) != (self.models, self.agents):
            raise ValueError(
                f"the data have models={models}, agents={agents}, the model models={self.models}, "
                f"agents={self.agents}: give both as many"
            )
        if steps % self.gate.cycle:
            raise ValueError(
                f"a chunk of {steps} steps is no whole number of theta cycles of {self.gate.cycle} steps: "
                "choose chunk_seconds of the data accordingly"
            )
        optimizer: Any = self.optimizers()
        rule = optimizer.optimizer
        many = self.trainer.world_size > 1 and self.sync != "none"
        rule.scale = float(self.trainer.world_size) if many and self.sync == "sum" else 1.0
        rule.reduce = self._mean if many and self.sync_every == "step" else None
        noise = self.draw_noise(steps, self.agents, self._generators)
        seen = self.state.step
        self.state, trace = self.run(batch, self.state, self.gate, noise, rule)
        rate, skip = self.settings.dt / ERROR_TAU, round(ERROR_SKIP / self.settings.dt)
        self.error = following(self.error, trace.error, rate, seen, skip)
        self.recorder.record(batch, trace, self.error, self.simulated_minutes)
        if many:
            self._share(rule)
        optimizer.step()
        schedulers: Any = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()
        self._log()

    @property
    def simulated_minutes(self) -> float:
        """Minutes that the models have lived."""
        return float(self.state.step * self.settings.dt / 60)

    def _log(self) -> None:
        error = self.error.mean(0)
        self.log("hippocampus/simulated_minutes", self.simulated_minutes)
        self.log("hippocampus/prediction_error_hpc", error[0])
        self.log("hippocampus/prediction_error_mec", error[1])
        self.log("minutes", self.simulated_minutes, prog_bar=True, logger=False)  # fits into the bar

    def figures(self) -> Mapping[str, "Figure"]:
        """Prediction errors over training, the ring, rate maps, and the last seconds of rates."""
        from lightning_plasticity.hippocampus import figures

        return figures.of_module(self)


def _preset(name: str) -> Any:
    return preset(name)


def _check(models: int, agents: int, engine: str, reduction: str, sync: str, sync_every: str) -> None:
    for name, number in {"models": models, "agents": agents}.items():
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1")
    for name, value, choices in (
        ("engine", engine, ("auto", "native", "eager")),
        ("reduction", reduction, ("mean", "sum")),
        ("sync", sync, ("mean", "sum", "none")),
        ("sync_every", sync_every, ("chunk", "step")),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")
