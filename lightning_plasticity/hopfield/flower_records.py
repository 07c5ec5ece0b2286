"""What the federation sends through Flower: memories, settings and contributions as `RecordDict`s."""

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.memory import Memory, RoundReport

log = logging.getLogger("flwr")

_NUMBERS = {"outliers": int, "round": int, "exchange": int, "noise_variance": float}  # a memory's scalars


def pack_broadcast(memory: Memory, config: FederationConfig) -> Any:
    """A message down: the memory as clients need it, and the settings, as a `RecordDict`."""
    flwr, small = flower("app"), memory.for_clients().to("cpu")
    state = small.state_dict()
    numbers = {name: kind(state[name]) for name, kind in _NUMBERS.items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    settings = flwr.ConfigRecord({"config": json.dumps(config.to_dict()), **numbers})
    return flwr.RecordDict({"memory": pack_tensors(tensors), "settings": settings})


def unpack_broadcast(content: Any) -> tuple[FederationConfig, Memory]:
    """The inverse of `pack_broadcast`."""
    settings, tensors = content["settings"], unpack_tensors(content["memory"])
    numbers = {name: kind(settings[name]) for name, kind in _NUMBERS.items()}
    empty = RoundReport.empty(len(tensors["weights"]))
    named = {f.name for f in fields(Memory)}
    state = {name: value for name, value in {**tensors, **numbers}.items() if name in named}
    return FederationConfig.from_dict(json.loads(settings["config"])), Memory(**state, report=empty)


def pack_contribution(contribution: Mapping[str, Tensor], client: int) -> Any:
    """A message up, as a `RecordDict`."""
    flwr = flower("app")
    who = flwr.ConfigRecord({"client": client})
    return flwr.RecordDict({"contribution": pack_tensors(contribution), "who": who})


def unpack_contribution(content: Any) -> tuple[int, Mapping[str, Tensor]]:
    """The inverse of `pack_contribution`; client -1 or no tensors where the message is something else."""
    try:
        client = content["who"]["client"]
    except (KeyError, TypeError):
        return -1, {}
    if not isinstance(client, int):
        return -1, {}
    try:
        return client, unpack_tensors(content["contribution"])
    except Exception as error:  # whatever a client may have put there, it must not end the round
        log.warning("client %d sent what is no contribution: %s", client, error)
        return client, {}


def pack_tensors(tensors: Mapping[str, Tensor]) -> Any:
    """Tensors as an `ArrayRecord`."""
    flwr = flower("app")
    return flwr.ArrayRecord({name: flwr.Array(tensor.cpu().numpy()) for name, tensor in tensors.items()})


def unpack_tensors(record: Any) -> dict[str, Tensor]:
    """The inverse of `pack_tensors`."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def flower(module: str) -> Any:
    """A module of Flower, or an error that says what to install."""
    try:
        return import_module(f"flwr.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "federations over a network need flwr: pip install 'lightning-plasticity[federated]'",
            name=error.name,
        ) from error
