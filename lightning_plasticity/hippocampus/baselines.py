"""What the model is compared with; all of these are ours, none is in the authors' code or figures."""

import torch
from torch import Tensor, nn

from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.hippocampus.module import HippocampalFormation

RECURRENT = ("mec_recurrent", "mec_right", "mec_left")


@torch.no_grad()
def hand_set_ring(
    model: HippocampalFormation,
    gain: float = 2.0,
    width: float = 0.06,
    inhibition: float = 0.3,
    push: float = 1.0,
) -> None:
    """Sets a textbook ring attractor in place of the learned one, and freezes it.

    Recurrent weights are a Gaussian of the distance between cells minus a constant; conjunctive ones are its
    slope, of opposite signs. Only the map to HPC is left to learn.

    Args:
        model: on a track with MEC cells in the order of the place fields (a fixed basal map).
        gain: sum of the Gaussian's weights.
        width: of the Gaussian, in turns of the ring.
        inhibition: sum of the constant's, in units of the gain.
        push: of the conjunctive weights.
    """
    count = model.settings.mec
    cells = torch.arange(count) / count
    offset = cells.unsqueeze(1) - cells
    offset = offset - offset.round()  # of the receiver from the sender
    bump = torch.exp(-offset * offset / (2 * width**2))
    bump = bump / bump.sum(1, keepdim=True)
    slope = offset / width * bump
    recurrent = gain * bump - gain * inhibition / count
    maps = {"mec_recurrent": recurrent, "mec_right": push * slope, "mec_left": -push * slope}
    for name, weight in maps.items():
        model.weights[name].copy_(weight.expand_as(model.weights[name]))
    model.freeze(*RECURRENT)


class Autoencoder(nn.Module):
    """An autoencoder of the latent model's size, one linear layer either way; variational or not.

    Args:
        features: inputs.
        hidden: units.
        variational: whether hidden units are Gaussian, with a standard normal prior.
        seed: of the weights.
    """

    def __init__(self, features: int = 50, hidden: int = 5, variational: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.hidden, self.variational = hidden, variational
        self.encoder = nn.Linear(features, hidden * (2 if variational else 1), bias=False)
        self.decoder = nn.Linear(hidden, features, bias=False)
        generator = generator_for(seed, stream=11)
        with torch.no_grad():
            for layer in (self.encoder, self.decoder):
                size = layer.weight.shape
                layer.weight.copy_(torch.randn(size, generator=generator) / size[1] ** 0.5)

    def encode(self, features: Tensor) -> Tensor:
        """Mean hidden rates `[N, hidden]` of features `[N, n_p]`."""
        means: Tensor = self.encoder(features)[:, : self.hidden]
        return means

    def loss(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error; of a variational one half its sum, plus the divergence from the prior."""
        code = self.encoder(features)
        if not self.variational:
            error: Tensor = (self.decoder(code) - features).square().mean()
            return error
        mean, log_variance = code.chunk(2, 1)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        rebuilt = self.decoder(mean + noise * (log_variance / 2).exp())
        divergence = (mean * mean + log_variance.exp() - 1 - log_variance).sum(1) / 2
        bound: Tensor = ((rebuilt - features).square().sum(1) / (2 * 0.1) + divergence).mean()
        return bound

    def fit(self, features: Tensor, lr: float = 3e-3, batch: int = 20, seed: int = 0) -> "Autoencoder":
        """One pass over a stream of features `[T, n_p]` in its order, by backpropagation and Adam."""
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        generator = generator_for(seed, stream=12)
        for chunk in torch.split(features, batch):
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(chunk, generator))
            optimizer.step()
        return self

    @torch.no_grad()
    def r2(self, features: Tensor) -> float:
        """Variance of features that the reconstruction explains."""
        residual = (self.decoder(self.encode(features)) - features).square().sum()
        return 1 - float(residual / (features - features.mean(0)).square().sum())
