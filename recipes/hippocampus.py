"""A hippocampus that learns with theta, and then walks in the dark (George et al., NeurIPS 2023).

    python recipes/hippocampus.py fit                           an hour on a track, half a minute on 2 cores
    python recipes/hippocampus.py fit --model.models=10         ten seeds at once: spread over models
    python recipes/hippocampus.py fit --config recipes/hippocampus_latents.yaml    artificial latents
    python recipes/hippocampus.py fit --config recipes/hippocampus_remap.yaml      transfer to a new track
    python recipes/hippocampus.py fit --config recipes/paper/hippocampus_track.yaml    the authors' settings
    python recipes/hippocampus.py fit --data.source=sargolini   a rat's recorded walk, laid on the track
    python recipes/hippocampus.py compare --seeds=10            presets, ablations and baselines

Somas of two layers are driven by basal dendrites in one half of each theta cycle, by apical ones in the
other; every dendrite learns to predict its soma by a local rule. On the track MEC becomes a ring attractor
that velocity moves, so that place can be followed with the light off. The fit ends with the error over time
in the dark, and figures in the run's folder. Everything is simulated here; nothing is downloaded.
"""

import torch
from hippocampus_compare import compare

from lightning_plasticity.callbacks import Remap
from lightning_plasticity.callbacks.figures import log_figure
from lightning_plasticity.cli import PlasticityCLI
from lightning_plasticity.hippocampus import HippocampalFormation, analysis, figures, latents, report


class Recipe(PlasticityCLI):
    """The data take their sizes and seed from the model; a fit ends with a report."""

    def add_arguments_to_parser(self, parser):
        """Link sizes and seed."""
        super().add_arguments_to_parser(parser)
        for name in ("models", "agents", "seed"):
            parser.link_arguments(f"model.{name}", f"data.init_args.{name}")

    def after_fit(self):
        """Report what was learned."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return
        if self.model.settings.task == "latents":
            self.report_latents()
        else:
            self.report_track()

    def report_track(self, seconds=60.0):
        """Print errors in the dark, with and without noise, and draw what happens there."""
        model, dt = self.model, self.model.settings.dt
        decoder = analysis.fit_decoder(model)
        dark = {
            name: analysis.walk_into_the_dark(model, seconds, noise=noise, decoder=decoder)
            for name, noise in {"without noise": False, "with noise": True}.items()
        }
        print("\n" + report.track_summary(model))
        print("\n" + report.dark_table({name: found.error for name, found in dark.items()}, dt))
        spread, chance = "models" if model.models > 1 else "walks", model.settings.circumference / 4
        print(f"20 walks of {seconds:g} s, mean and spread over {spread}; chance is {chance:g} m")
        speeds = torch.linspace(-1.2, 1.2, 13)
        drawn = {
            "tracking": figures.tracking_figure(dark["without noise"], dt),
            "bump_speed": figures.bump_speed_figure(speeds, {"bump": analysis.bump_speed(model, speeds)}),
        }
        for name, figure in drawn.items():
            log_figure(self.trainer, name, figure)
        for callback in self.trainer.callbacks:
            if isinstance(callback, Remap) and callback.errors:
                print("\nerror 1 s into the dark, new environment\n" + report.transfer_table(callback.errors))

    def report_latents(self):
        """Print how well wake predicts and what sleep generates, and draw both."""
        found = latents.wake_and_sleep(self.model)
        print("\n" + report.latent_summary(found))
        log_figure(
            self.trainer, "wake_and_sleep", figures.wake_and_sleep_figure(found, self.model.settings.dt)
        )


if __name__ == "__main__":
    Recipe(HippocampalFormation, script=__file__, subclass_mode_data=True, commands={"compare": compare})
