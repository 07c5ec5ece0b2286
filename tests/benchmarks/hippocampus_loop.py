"""The authors' training loop restated in NumPy: what their code computes, draws and keeps at every step."""

import numpy as np

from tests.hippocampus.reference import DENDRITES, Reference


class AuthorsLoop(Reference):
    """One animal on the track, one step at a time.

    Beside the model's equations (`Reference`) each step moves the animal, computes its place fields, draws
    the noise of the dendrites and of the other populations (whose scale is 0), low-passes the two prediction
    errors, and appends time, rates and spikes of nine populations to lists, as RatInABox does by default.
    Their copy of each weight matrix at each step is left out.

    Args:
        settings: Numbers of a preset.
        weights: name -> matrix.
        centres: of the place fields, metres.
        seed: of everything random.
    """

    def __init__(self, settings, weights, centres, seed=0):
        super().__init__(settings, weights)
        self.centres, self.random = np.asarray(centres, dtype=np.float64), np.random.default_rng(seed)
        self.position, self.velocity, self.time = self.random.random(), 0.0, 0.0
        self.agent = {"t": [], "pos": [], "vel": []}
        sizes = {
            "features": settings.hpc,
            "hpc": settings.hpc,
            "mec": settings.mec,
            "c": 2 * settings.mec,
            "v": 2,
        }
        sizes |= dict(zip(DENDRITES, 2 * [settings.hpc] + 2 * [settings.mec], strict=True))
        self.populations = {name: {"t": [], "firingrate": [], "spikes": []} for name in sizes}
        self.silent = {name: np.zeros(size) for name, size in sizes.items() if name not in DENDRITES}
        self.losses, self.loss = [], None

    def walk(self):
        """Moves with the old velocity, then draws a new one; place fields of where it is."""
        s = self.s
        self.position = (self.position + s.dt * self.velocity) % s.circumference
        kick = 0.5 * np.sqrt(2 * s.dt / 0.7) * self.random.normal(size=1)[0]
        self.velocity += -self.velocity * s.dt / 0.7 + kick
        self.time += s.dt
        for name, value in (("t", self.time), ("pos", [self.position]), ("vel", [self.velocity])):
            self.agent[name].append(value)
        distance = np.abs(self.position - self.centres)
        distance = np.minimum(distance, s.circumference - distance)
        return np.exp(-(distance**2) / (2 * s.field_width**2))

    def keep(self, name, rates):
        """Appends a population's state; its own noise is drawn, too."""
        s, history = self.s, self.populations[name]
        if name in self.silent:
            old = self.silent[name]
            scale = 0.0 * np.sqrt(2 * s.dt / 0.5)
            self.silent[name] = old - old * s.dt / 0.5 + scale * self.random.normal(size=len(old))
            rates = rates + self.silent[name]
        history["t"].append(self.time)
        history["firingrate"].append(list(rates))
        history["spikes"].append(list(self.random.uniform(size=len(rates)) < s.dt * rates))

    def run(self, steps):
        """Walks and learns."""
        s = self.s
        cycle = s.sleep_steps + s.wake_steps
        for t in range(steps):
            z = self.walk()
            sleep = float(t % cycle < s.sleep_steps)
            normal = {name: self.random.normal(size=len(noise)) for name, noise in self.noise.items()}
            self.step(z, self.velocity / s.full_speed, sleep, sleep, normal)
            rates = {
                "features": z,
                "hpc": self.p,
                "mec": self.g,
                "c": np.concatenate([self.right, self.left]),
            }
            rates["v"] = np.maximum(0, np.array([self.velocity, -self.velocity]) / s.full_speed)
            for name in self.populations:
                self.keep(name, rates.get(name, self.noise.get(name)))
            new = np.array(self.errors[-1])
            self.loss = new if self.loss is None else self.loss + s.dt / 60 * (new - self.loss)
            self.losses.append(self.loss)
