"""What a model does when the light goes out: decoding, path integration, the bump's speed, the ring."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.data.trajectories import Walker
from lightning_plasticity.hippocampus.dynamics import State
from lightning_plasticity.hippocampus.gate import Gate, Mode
from lightning_plasticity.hippocampus.module import HippocampalFormation
from lightning_plasticity.metrics.circular_decoding import circular_distance
from lightning_plasticity.metrics.ring_score import LIVE

RIDGE = 0.01
TURN = 2 * torch.pi


class Decoder(NamedTuple):
    """Linear read-out of place from hippocampal rates, by ridge regression on (cos, sin).

    Attributes:
        weights: `[M, n_p + 1, 2]`, the constant last, float64.
        circumference: metres.
    """

    weights: Tensor
    circumference: float

    def __call__(self, p: Tensor) -> Tensor:
        """Places `[T, M, B]` in metres of rates `[T, M, n_p, B]`."""
        rates = p.double()
        x, y = torch.einsum("mic,tmib->ctmb", self.weights[:, :-1], rates) + self.weights[:, -1].T[
            :, None, :, None
        ].to(rates)
        return (torch.atan2(y, x) / TURN % 1.0 * self.circumference).to(p.dtype)


class Darkness(NamedTuple):
    """Walks whose second part is in the dark.

    Attributes:
        decoded: places in metres `[M, tests, T]`, all steps in the dark.
        true: likewise.
        error: distance of both along the track, likewise.
        decoded_light: places in metres at the steps in the light before `[M, tests, S]`.
        true_light: likewise.
    """

    decoded: Tensor
    true: Tensor
    error: Tensor
    decoded_light: Tensor
    true_light: Tensor


def fit_decoder(
    model: HippocampalFormation, minutes: float = 10.0, seed: int = 0, mode: Mode | None = None
) -> Decoder:
    """Fits a decoder in the light, without learning: every fourth step, whatever its phase, noise on.

    The authors fit theirs on the last ten minutes of training; ours has minutes of its own, from rest and
    after training, so that nothing of a run has to be kept. The sums are streamed. The model is left as it
    is.

    Args:
        model: on a track.
        minutes: simulated.
        seed: of walks and noise.
        mode: of both layers; None: the model's gate.
    """
    settings, count = model.settings, model.settings.hpc + 1
    gate = model.gate if mode is None else model.gate.with_mode(mode)
    walker = _walker(model, seed, agents=1, stream=6)
    generators = [generator_for(seed * 1009 + own, stream=7) for own in model.seeds]
    state = _rest(model, agents=1)
    gram = torch.zeros(model.models, count, count, dtype=torch.float64, device=model.device)
    target = gram.new_zeros(model.models, count, 2)
    chunk_steps = 50 * model.gate.cycle
    for _ in range(max(1, round(minutes * 60 / settings.dt / chunk_steps))):
        chunk = walker.take(chunk_steps)
        state, trace = model.run(chunk, state, gate, model.draw_noise(chunk_steps, 1, generators))
        rates = trace.p[::4, :, :, 0].double().transpose(0, 1)  # [M, T, n_p]
        rates = torch.cat([rates, torch.ones_like(rates[:, :, :1])], 2)
        angle = chunk["position"][::4, :, 0].to(rates) * (TURN / settings.circumference)
        gram += rates.transpose(1, 2) @ rates
        target += rates.transpose(1, 2) @ torch.stack([angle.cos(), angle.sin()], 2).transpose(0, 1)
    ridge = RIDGE * torch.eye(count, dtype=gram.dtype, device=gram.device)
    return Decoder(torch.linalg.solve(gram + ridge, target), settings.circumference)


def walk_into_the_dark(
    model: HippocampalFormation,
    seconds: float = 20.0,
    tests: int = 20,
    seed: int = 0,
    *,
    noise: bool = False,
    spin_up: float = 3.0,
    decoder: Decoder | None = None,
    speed_mean: float = 0.0,
    speed_std: float = 0.5,
) -> Darkness:
    """Walks in the light, from rest, then in the dark: both layers asleep, and only velocity is felt.

    Args:
        model: on a track; it is left as it is, and does not learn.
        seconds: in the dark.
        tests: walks, the same for every model.
        seed: of walks, noise and the decoder.
        noise: whether dendrites are noisy.
        spin_up: seconds in the light, to the nearest whole theta cycle.
        decoder: None: `fit_decoder` makes one.
        speed_mean: m/s.
        speed_std: m/s.

    Raises:
        ValueError: if the model has no track, or a number is out of range.
    """
    if model.settings.task != "track":
        raise ValueError(f"path integration needs a track, task={model.settings.task!r} has none")
    if tests < 1 or not seconds > 0 or not spin_up > 0:
        raise ValueError(f"tests={tests}, seconds={seconds}, spin_up={spin_up}: all must be positive")
    decoder = fit_decoder(model, seed=seed) if decoder is None else decoder
    walker = Walker(
        [1_000_003 + seed], tests, model.settings.dt, speed_mean, speed_std,
        circumference=model.settings.circumference,
    )  # fmt: skip
    generators = [generator_for(seed * 1009 + own, stream=8) for own in model.seeds]

    def walk(state: State, gate: Gate, steps: int) -> tuple[State, Tensor, Tensor]:
        chunk = walker.take(steps)
        numbers = model.draw_noise(steps, tests, generators) if noise else None
        state, trace = model.run(chunk, state, gate, numbers)
        decoded = decoder(trace.p)
        return state, decoded, chunk["position"].to(decoded).expand_as(decoded)

    cycles = max(1, round(spin_up / model.settings.dt / model.gate.cycle))
    state, *light = walk(_rest(model, tests), model.gate, cycles * model.gate.cycle)
    steps = max(1, round(seconds / model.settings.dt))
    _, decoded, true = walk(state, model.gate.with_mode("sleep"), steps)
    error = circular_distance(decoded, true, model.settings.circumference)
    return Darkness(*(part.permute(1, 2, 0).contiguous() for part in (decoded, true, error, *light)))


def dark_tracking_error(
    model: HippocampalFormation, seconds: float = 20.0, tests: int = 20, seed: int = 0, noise: bool = False
) -> Tensor:
    """Distance of the decoded from the true place at each step in the dark, in metres; chance is 0.25.

    Args:
        model: on a track; it is left as it is.
        seconds: in the dark.
        tests: walks.
        seed: of walks, noise and the decoder.
        noise: whether dendrites are noisy during the tests.

    Returns:
        `[tests, steps]` of one model, `[M, tests, steps]` of several.

    Raises:
        ValueError: if the model has no track, or a number is out of range.

    Example:
        >>> model = HippocampalFormation("track_tuned")
        >>> dark_tracking_error(model, seconds=1.0, tests=2).shape                  # untrained: at chance
        torch.Size([2, 40])
    """
    error = walk_into_the_dark(model, seconds, tests, seed, noise=noise).error
    return error[0] if model.models == 1 else error


def errors_at(error: Tensor, dt: float, times: tuple[float, ...] = (1, 2, 5, 10, 20)) -> Tensor:
    """Mean over tests of the error at some times in the dark `[..., times]`, up to the last step.

    Args:
        error: `[..., tests, steps]`.
        dt: seconds of a step.
        times: seconds.
    """
    steps = [round(time / dt) - 1 for time in times if round(time / dt) <= error.shape[-1]]
    return error[..., steps].mean(-2)


def bump_speed(
    model: HippocampalFormation, speeds: Tensor, seconds: float = 8.0, starts: int = 4, seed: int = 0
) -> Tensor:
    """Speed of the decoded place in the dark at constant true speeds `[M, V]`, m/s.

    Where it is not the true speed the model cannot integrate its path. Two seconds in the light go before;
    the first fifth of the dark does not count.

    Args:
        model: on a track; it is left as it is.
        speeds: true ones `[V]`, m/s.
        seconds: in the dark.
        starts: places where each walk begins.
        seed: of the decoder.
    """
    settings, decoder = model.settings, fit_decoder(model, seed=seed)
    velocity = speeds.to(model.state.p).repeat_interleave(starts)
    start = torch.arange(starts).to(velocity).repeat(len(speeds)) * settings.circumference / starts
    state, step = _rest(model, len(velocity)), 0

    def walk(state: State, gate: Gate, duration: float) -> tuple[State, Tensor]:
        nonlocal step
        steps = round(duration / settings.dt / gate.cycle) * gate.cycle
        time = torch.arange(step + 1, step + steps + 1).to(velocity) * settings.dt
        step += steps
        position = (start + time.unsqueeze(1) * velocity) % settings.circumference
        moving = velocity.expand_as(position).unsqueeze(1)
        chunk = {"position": position.unsqueeze(1), "velocity": moving, "coming": moving}
        state, trace = model.run(chunk, state, gate)
        return state, decoder(trace.p)

    state, _ = walk(state, model.gate, 2.0)
    _, decoded = walk(state, model.gate.with_mode("sleep"), seconds)
    moves = decoded.diff(dim=0) / settings.circumference
    moves = (moves - moves.round()) * settings.circumference
    late: Tensor = moves[len(moves) // 5 :].mean(0) / settings.dt  # [M, V * starts]
    return late.view(model.models, len(speeds), starts).mean(2)


class Ring(NamedTuple):
    """Weights among the live MEC cells of one model, sorted along the track `[n, n]`; rows receive."""

    recurrent: Tensor
    right: Tensor
    left: Tensor


def live_cells(model: HippocampalFormation) -> Tensor:
    """Number of MEC cells that fire somewhere in the light `[M]`."""
    return (_rate_map(model).amax(2) > LIVE).sum(1)


def sorted_ring(model: HippocampalFormation, index: int = 0) -> Ring:
    """Sorts the MEC's weights by where the basal rates of each cell peak; dead cells are left out.

    Args:
        model: on a track.
        index: of the model.
    """
    rates = _rate_map(model)[index]
    live = (rates.amax(1) > LIVE).nonzero().flatten()
    order = live[rates[live].argmax(1).argsort(stable=True)]
    names = ("mec_recurrent", "mec_right", "mec_left")
    return Ring(*(model.weights[name].detach()[index][order][:, order] for name in names))


def _rate_map(model: HippocampalFormation) -> Tensor:
    return model.rate_map("mec", "wake", (torch.arange(100) + 0.5) / 100 * model.settings.circumference)


def _walker(model: HippocampalFormation, seed: int, agents: int, stream: int) -> Walker:
    seeds = [(seed * 1009 + own) * 16 + stream for own in model.seeds]
    return Walker(seeds, agents, model.settings.dt, circumference=model.settings.circumference)


def _rest(model: HippocampalFormation, agents: int) -> State:
    like = model.state.p
    return State.zeros(model.settings, model.models, agents, like.dtype, like.device)
