"""The model once more, slow and obvious, in NumPy: one agent, one loop, from the paper's equations."""

import numpy as np

DENDRITES = ("pA", "pB", "gA", "gB")


class Reference:
    """One model with one agent in float64.

    Args:
        settings: Numbers of a preset.
        weights: name -> matrix, changed by learning.
    """

    def __init__(self, settings, weights):
        self.s = settings
        self.W = {name: np.array(weight, dtype=np.float64) for name, weight in weights.items()}
        self.PI = {name: np.zeros_like(weight) for name, weight in self.W.items()}
        self.p, self.g = np.zeros(settings.hpc), np.zeros(settings.mec)
        self.right, self.left = np.zeros(settings.mec), np.zeros(settings.mec)
        self.velocity_cell = 0.0
        self.noise = {
            name: np.zeros(size)
            for name, size in zip(DENDRITES, 2 * [settings.hpc] + 2 * [settings.mec], strict=True)
        }
        self.errors = []

    def step(self, z, u_new, sleep_hpc, sleep_mec, normal):
        """One step of 25 ms; `sleep` flags are 1 or 0 (or a mix), `normal` the numbers of pA, pB, gA, gB."""
        s = self.s
        for name, numbers in normal.items():
            size = s.noise_mec_apical if name == "gA" else s.noise
            old = self.noise[name]
            self.noise[name] = (
                old - old * s.dt / s.noise_tau + size * np.sqrt(2 * s.dt / s.noise_tau) * numbers
            )
        # hippocampus
        g_in = np.append(self.g, 1.0) if s.bias else self.g
        pA = self.W["hpc_apical"] @ g_in + self.noise["pA"]
        pB = z + self.noise["pB"]
        self.p = sleep_hpc * pA + (1 - sleep_hpc) * pB
        self.learn("hpc_apical", self.p - pA, g_in)
        # entorhinal cortex
        p_in = np.append(self.p, 1.0) if s.bias else self.p
        VB = self.W["mec_basal"] @ p_in
        VA = self.W["mec_recurrent"] @ self.g
        if s.task == "track":
            VA = VA + self.W["mec_right"] @ self.right + self.W["mec_left"] @ self.left
        gB, gA = self.f(VB) + self.noise["gB"], self.f(VA) + self.noise["gA"]
        g_before = self.g
        self.g = sleep_mec * gA + (1 - sleep_mec) * gB
        self.learn("mec_basal", (self.g - gB) * self.slope(VB), p_in)
        apical = (self.g - gA) * self.slope(VA)
        self.learn("mec_recurrent", apical, g_before)
        if s.task == "track":
            self.learn("mec_right", apical, self.right)
            self.learn("mec_left", apical, self.left)
            felt = self.velocity_cell if s.lag else u_new
            self.right = np.maximum(0, self.g + felt - s.threshold)
            self.left = np.maximum(0, self.g - felt - s.threshold)
            self.velocity_cell = u_new
        self.errors.append((np.abs(pB - pA).mean(), np.abs(gB - gA).mean()))

    def learn(self, name, delta, presynaptic):
        """PI low-passes delta times presynaptic rate; W moves along it."""
        s, eta = self.s, self.s.eta.get(name, 0.0)
        if eta == 0:
            return
        a = s.dt / s.tau
        self.PI[name] = (1 - a) * self.PI[name] + a * np.outer(delta, presynaptic)
        decay = s.l2.get(name, 0.0) * self.W[name] + s.l1.get(name, 0.0) * np.sign(self.W[name])
        self.W[name] = self.W[name] + eta * (self.PI[name] - decay)

    def f(self, V):
        """Activation."""
        return V if self.s.activation == "linear" else np.maximum(0, np.tanh(V))

    def slope(self, V):
        """Its derivative, written out."""
        return np.ones_like(V) if self.s.activation == "linear" else np.where(V > 0, 1 / np.cosh(V) ** 2, 0.0)


def run_reference(settings, weights, inputs, model=0):
    """The reference after all steps of `Inputs` of one model with one agent."""
    reference = Reference(settings, {name: weight[model].numpy() for name, weight in weights.items()})
    bounds = np.cumsum([settings.hpc, settings.hpc, settings.mec])
    features, noise = inputs.features[:, model, :, 0].numpy(), inputs.noise[:, model, :, 0].numpy()
    speed = np.zeros(len(features)) if inputs.speed is None else inputs.speed[:, model, 0].numpy()
    sleep = inputs.sleep.double().numpy()
    for t in range(len(features)):
        normal = dict(zip(DENDRITES, np.split(noise[t], bounds), strict=True))
        reference.step(features[t], speed[t], sleep[t, 0], sleep[t, 1], normal)
    return reference
