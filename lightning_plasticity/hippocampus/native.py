"""The fast way on a CPU: a small C++ kernel, compiled once by the machine's own compiler.

It computes what `dynamics.unroll` and `plasticity.LocalPlasticity` compute, for models with one agent each,
and spreads models over torch's threads. Where there is no compiler, or one that fails, `library` gives None
and the plain way goes on.
"""

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lightning_plasticity.hippocampus.dynamics import Inputs, State, Trace, Weights
from lightning_plasticity.hippocampus.plasticity import LocalPlasticity
from lightning_plasticity.hippocampus.settings import Settings

_SOURCE = Path(__file__).with_name("kernel.cpp")
# Sums may be reordered, as in any vectorised product; infinities and NaN keep their meaning.
_FLAGS = (
    "-O3 -std=c++17 -shared -fPIC -fno-math-errno -fno-trapping-math -fassociative-math -fno-signed-zeros"
)
_TARGETS = {"AVX2": "-march=x86-64-v3", "AVX512": "-march=x86-64-v4"}
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_STANDING = {"eta": 0.0, "trace_rate": 1.0, "l1": 0.0, "l2": 0.0, "scale": 1.0}


Maps = dict[str, tuple[Tensor, Tensor, list[float]]]


class _Map(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "induction")),
        *((name, ctypes.c_int64) for name in ("cells", "inputs")),
        *((name, ctypes.c_double) for name in _STANDING),
    )


_MAPS = {
    "hpc_apical": "hpc_apical",
    "mec_basal": "mec_basal",
    "mec_recurrent": "recurrent",
    "mec_right": "right",
    "mec_left": "left",
}


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, _Map) for name in _MAPS.values()),
        *((name, ctypes.c_int64) for name in ("hpc", "mec", "conjunctive", "steps", "retanh", "lag")),
        *(
            (name, ctypes.c_double)
            for name in ("threshold", "noise_decay", "noise_jump", "noise_jump_mec_apical")
        ),
        *((name, ctypes.c_void_p) for name in ("p", "g", "c", "u", "noise")),
        *((name, ctypes.c_void_p) for name in ("features", "speed", "sleep", "normal")),
        *((name, ctypes.c_int64) for name in ("features_stride", "speed_stride", "normal_stride")),
        *((name, ctypes.c_void_p) for name in ("trace_p", "trace_g", "trace_error")),
        *((name, ctypes.c_int64) for name in ("trace_p_stride", "trace_g_stride", "trace_error_stride")),
    )


def find_compiler() -> str | None:
    """The C++ compiler: `$CXX`, else the first of c++, g++ and clang++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it cannot be built. Compiles once per machine, in about a second."""
    compiler = find_compiler()
    if compiler is None:
        return None
    flags = _FLAGS.split()
    if platform.machine() in ("x86_64", "AMD64"):
        target = _TARGETS.get(torch.backends.cpu.get_cpu_capability())
        flags += [target] if target else []
    try:
        return ctypes.CDLL(str(_compiled(compiler, flags)))
    except (OSError, subprocess.CalledProcessError):
        return None


def _compiled(compiler: str, flags: list[str]) -> Path:
    text = _SOURCE.read_bytes()
    key = hashlib.sha256(text + " ".join([compiler, *flags]).encode()).hexdigest()[:16]
    path = _cache_folder() / f"hippocampus-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            command = [compiler, *flags, str(_SOURCE), "-o", str(fresh)]
            subprocess.run(command, check=True, capture_output=True)
            fresh.replace(path)  # at once, so that no other process loads half a file
    return path


def _cache_folder() -> Path:
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = Path(root) if root else Path.home() / ".cache" / "torch_extensions"
    folder = folder / "lightning_plasticity"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def why_not(weights: Weights, state: State) -> str | None:
    """Why the kernel cannot run a model; None if it can."""
    weight = weights["hpc_apical"]
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}, the kernel runs on the CPU"
    if weight.dtype not in _DTYPES:
        return f"the model is {weight.dtype}, the kernel computes in float32 or float64"
    if state.p.shape[2] != 1:
        return f"{state.p.shape[2]} agents share a model, the kernel has one"
    if library() is None:
        return "there is no working C++ compiler"
    return None


@torch.no_grad()
def unroll(
    settings: Settings,
    weights: Weights,
    state: State,
    inputs: Inputs,
    rule: LocalPlasticity | None = None,
) -> tuple[State, Trace]:
    """`dynamics.unroll` with learning by `rule`, which is the same to rounding.

    Args:
        settings: of the model.
        weights: the maps `[M, n, m]`, changed in place by `rule`.
        state: before the first step; it is left as it is.
        inputs: of the steps.
        rule: the learning rule of these weights; None: the model does not learn.

    Raises:
        ValueError: if the kernel cannot run the model; the text says why.
    """
    reason = why_not(weights, state)
    if reason is not None:
        raise ValueError(f"the native engine cannot run this: {reason}; use engine='eager'")
    weight = weights["hpc_apical"]
    steps, models, dtype = len(inputs.sleep), len(weight), weight.dtype
    inputs = Inputs(*(None if part is None else part.to(dtype).contiguous() for part in inputs))  # type: ignore[arg-type]
    after = state.map(lambda tensor: tensor.clone(memory_format=torch.contiguous_format))
    after.step += steps
    trace = Trace(
        p=weight.new_empty(steps, models, settings.hpc, 1),
        g=weight.new_empty(steps, models, settings.mec, 1),
        error=weight.new_empty(steps, models, 2),
    )
    maps = _maps(weights, rule)
    networks = [_network(settings, maps, after, inputs, trace, model) for model in range(models)]
    run = getattr(library(), f"hippocampus_{_DTYPES[dtype]}")
    threads = min(torch.get_num_threads(), models)
    if threads == 1:
        for network in networks:
            run(ctypes.byref(network))
    else:
        with ThreadPoolExecutor(threads) as pool:  # a foreign call lets other threads run
            list(pool.map(lambda network: run(ctypes.byref(network)), networks))
    return after, trace


def _maps(weights: Weights, rule: LocalPlasticity | None) -> Maps:
    """Weights, inductions and constants of the rule, by the kernel's names."""
    found = {}
    for name, weight in weights.items():
        # an induction is not read where nothing is learned
        induction = weight if rule is None else rule.induction(name)
        constants = _STANDING if rule is None else rule.rule(name)
        if not (weight.is_contiguous() and induction.is_contiguous()):
            raise ValueError(f"the map {name} isn't contiguous: call .contiguous() on it first")
        found[_MAPS[name]] = weight, induction, list(constants.values())
    return found


def _network(
    settings: Settings,
    maps: Maps,
    state: State,
    inputs: Inputs,
    trace: Trace,
    model: int,
) -> _Network:
    rate = settings.dt / settings.noise_tau
    streams = {
        "features": inputs.features,
        "speed": inputs.speed,
        "normal": inputs.noise,
        **{f"trace_{name}": stream for name, stream in trace._asdict().items()},
    }
    network = _Network(
        hpc=settings.hpc,
        mec=settings.mec,
        conjunctive=settings.conjunctive,
        steps=len(inputs.sleep),
        retanh=settings.activation == "retanh",
        lag=settings.lag,
        threshold=settings.threshold,
        noise_decay=1 - rate,
        noise_jump=settings.noise * math.sqrt(2 * rate),
        noise_jump_mec_apical=settings.noise_mec_apical * math.sqrt(2 * rate),
        sleep=inputs.sleep.data_ptr(),
        **{name: _address(tensor, 0, model) for name, tensor in state.tensors().items()},
        **{name: _address(stream, 1, model) for name, stream in streams.items() if stream is not None},
        **{f"{name}_stride": stream.stride(0) for name, stream in streams.items() if stream is not None},
    )
    for name, (weight, induction, constants) in maps.items():
        addresses = (_address(weight, 0, model), _address(induction, 0, model))
        setattr(network, name, _Map(*addresses, *weight.shape[1:], *constants))
    return network


def _address(tensor: Tensor, dim: int, index: int) -> int:
    """Where the numbers of one model begin."""
    return tensor.data_ptr() + index * tensor.stride(dim) * tensor.element_size()
