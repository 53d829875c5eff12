"""A naive SAC update: float64, one sample at a time where it matters, gradients by central
differences. Imports nothing of the package; slow, for networks of a few hundred parameters."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def layer_norm(h):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)


def net(p, x):
    """p: w0 b0 g0 h0 w1 b1 g1 h1 w2 b2 of one network."""
    for k in "01":
        x = np.maximum(layer_norm(x @ p["w" + k] + p["b" + k]) * p["g" + k] + p["h" + k], 0)
    return x @ p["w2"] + p["b2"]


def part(params, prefix, pick=...):
    return {n.split(".")[1]: a[pick] for n, a in params.items() if n.startswith(prefix)}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(pi):
    return -(pi * np.log(pi)).sum(-1).mean()


def hl_gauss(y, bins, v_max, sigma_bins):
    """(B, bins): a normal density's mass in each bin, one by one from the cumulative function."""
    width = 2 * v_max / (bins - 1)
    out = np.empty((len(y), bins))
    for i, m in enumerate(y):
        for j in range(bins):
            centre = -v_max + j * width
            z = (np.array([centre - width / 2, centre + width / 2]) - m) / (sigma_bins * width)
            out[i, j] = np.diff(0.5 * (1 + erf(z / math.sqrt(2))))[0]
    return out / out.sum(1, keepdims=True)


class NaiveLearner:
    """One learner from named float64 arrays; `c` has the fields of the package's configuration."""

    def __init__(self, params, target, c, *, discrete, actions, ln_temperature, goal, exponent):
        self.p = {n: a.astype(np.float64) for n, a in params.items()}
        self.target = {n: a.astype(np.float64) for n, a in target.items()}
        self.first = {n: np.zeros_like(a) for n, a in self.p.items()}
        self.second = {n: np.zeros_like(a) for n, a in self.p.items()}
        self.c, self.discrete, self.actions, self.goal = c, discrete, actions, goal
        self.ln_temperature, self.exponent = ln_temperature, exponent
        self.m = self.v = 0.0
        self.updates = 0
        self.tqc = c.head == "tqc"
        self.count = c.quantiles if self.tqc else c.bins
        self.centres = np.linspace(-c.v_max, c.v_max, c.bins)

    def logits(self, params, x):
        out = np.stack([net(part(params, "critic", i), x) for i in (0, 1)])
        return out.reshape(2, len(x), self.actions, self.count) if self.discrete else out

    def q(self, logits):
        return logits.mean(-1) if self.tqc else softmax(logits) @ self.centres

    def actor(self, params, x):
        out = net(part(params, "actor"), x)
        mean, raw = out[:, : self.actions], out[:, self.actions :]
        return mean, -10 + 6 * (1 + np.tanh(raw))

    def quantile_loss(self, quantiles, z):
        """mean_i sum_j mean_m, summed over critics; quantiles (2, B, K), z (B, M)."""
        edge, count = self.c.quantile_huber, quantiles.shape[-1]
        levels = np.array([(j + 0.5) / count for j in range(count)])[:, None]
        total = 0.0
        for critic in quantiles:
            for row, goals in zip(critic, z, strict=True):
                error = goals[None, :] - row[:, None]
                size = np.abs(error)
                huber = np.where(size <= edge, size**2 / 2, edge * (size - edge / 2))
                side = np.where(error < 0, 1 - levels, levels)
                total += (side * huber / edge).mean(1).sum() / len(z)
        return total

    def truncated(self, slow, pi):
        """(B, M) from slow (2, B, A, K) and pi (B, A)."""
        kept = 2 * (self.count - self.c.quantiles_dropped)
        lowest = np.sort(np.concatenate([slow[0], slow[1]], -1), -1)[..., :kept]
        return (pi[..., None] * lowest).sum(1)

    def critic_loss(self, params, x, action, p):
        if self.discrete:
            l = self.logits(params, x)[:, np.arange(len(x)), action]  # noqa: E741
        else:
            l = self.logits(params, np.hstack([x, action]))  # noqa: E741
        if self.tqc:
            return self.quantile_loss(l, p)
        return -(p * np.log(softmax(l))).sum(-1).mean(1).sum()

    def actor_terms(self, params, x, noise):
        mean, ln_std = self.actor(params, x)
        u = mean + np.exp(ln_std) * noise
        a = np.tanh(u)
        density = np.exp(-(noise**2) / 2) / np.sqrt(2 * np.pi) / np.exp(ln_std)
        return a, np.log(density / (1 - a**2)).sum(1)

    def actor_loss(self, params, x, noise, temperature):
        a, ln_density = self.actor_terms(params, x, noise)
        q = self.q(self.logits(params, np.hstack([x, a]))).mean(0)
        return (temperature * ln_density - q).mean()

    def descend(self, prefix, loss, step, h=1e-6):
        """Central differences, clip, AdamW on the network of that prefix; returns the gradient."""
        names = [n for n in self.p if n.startswith(prefix)]
        gradient = {}
        for n in names:
            flat, g = self.p[n].reshape(-1), np.zeros(self.p[n].size)
            for k in range(flat.size):
                kept = flat[k]
                flat[k] = kept + h
                up = loss(self.p)
                flat[k] = kept - h
                g[k] = (up - loss(self.p)) / (2 * h)
                flat[k] = kept
            gradient[n] = g.reshape(self.p[n].shape)
        norm = math.sqrt(sum((g**2).sum() for g in gradient.values()))
        for n in names:
            g = gradient[n] * min(1.0, self.c.gradient_clip / (norm + 1e-6))
            if n.split(".")[1][0] == "w":
                self.p[n] *= 1 - self.c.step_size * self.c.weight_decay
            self.first[n] = 0.9 * self.first[n] + 0.1 * g
            self.second[n] = 0.999 * self.second[n] + 0.001 * g**2
            mean, var = self.first[n] / (1 - 0.9**step), self.second[n] / (1 - 0.999**step)
            self.p[n] -= self.c.step_size * mean / (np.sqrt(var) + 1e-8)
        return gradient

    def root(self, q):
        low, high = math.log(self.c.min_temperature), 0.0
        for _ in range(12):
            mid = (low + high) / 2
            if entropy(softmax(q / math.exp(mid))) > self.goal:
                high = mid
            else:
                low = mid
        return (low + high) / 2

    def pessimistic(self, q):
        """The critics' minimum at pessimism 1, their mean at 0."""
        w = self.c.pessimism_for(self.discrete)
        return w * q.min(0) + (1 - w) * q.mean(0)

    def update(self, obs, action, reward, discount, next_obs, mean, scale, reward_scale, draw):
        """draw() gives the next standard normal (B, A); returns the new priorities (B,)."""
        c, k, temperature = self.c, self.updates, math.exp(self.ln_temperature)
        x = np.clip((obs.astype(np.float64) - mean) * scale, -5, 5)
        nx = np.clip((next_obs.astype(np.float64) - mean) * scale, -5, 5)
        if self.discrete:
            online = self.q(self.logits(self.p, nx)).mean(0)
            pi = softmax(online / temperature)
            slow = self.logits(self.target, nx)
            surprise = -(pi * np.log(pi)).sum(1)
            if k % 10 == 0:
                weight = 1.0 if k <= 50 else 0.1
                self.ln_temperature += weight * (self.root(online) - self.ln_temperature)
        else:
            pi = np.ones((len(nx), 1))
            next_action, ln_density = self.actor_terms(self.p, nx, draw())
            slow = self.logits(self.target, np.hstack([nx, next_action]))[:, :, None]
            surprise = -ln_density
        bonus = c.entropy_backup * temperature * surprise
        scaled = reward / float(reward_scale[0])
        if self.tqc:
            p = self.truncated(slow, pi) + bonus[:, None]
            p = scaled[:, None] + discount[:, None] * p
            y, unit = p.mean(1), c.quantile_huber
        else:
            v = (pi * self.pessimistic(self.q(slow))).sum(1) + bonus
            y, unit = np.clip(scaled + discount * v, -c.v_max, c.v_max), 2 * c.v_max / (c.bins - 1)
            p = hl_gauss(y, c.bins, c.v_max, c.sigma_bins)
        if self.discrete:
            q = self.q(self.logits(self.p, x)).mean(0)[np.arange(len(x)), action]
        else:
            q = self.q(self.logits(self.p, np.hstack([x, action]))).mean(0)
        self.critic_gradient = self.descend(
            "critic", lambda w: self.critic_loss(w, x, action, p), k + 1
        )
        if not self.discrete and k % c.policy_delay == 0:
            noise, step = draw(), k // c.policy_delay + 1
            error = -self.actor_terms(self.p, x, noise)[1].mean() - self.goal
            self.descend("actor", lambda w: self.actor_loss(w, x, noise, temperature), step)
            self.m = 0.9 * self.m + 0.1 * error
            self.v = 0.999 * self.v + 0.001 * error**2
            ratio = self.m / (1 - 0.9**step) / (math.sqrt(self.v / (1 - 0.999**step)) + 1e-8)
            moved = self.ln_temperature - c.temperature_learning_rate * ratio
            self.ln_temperature = min(max(moved, math.log(c.min_temperature)), 0.0)
        for n, t in self.target.items():
            t += c.target_rate * (self.p[n] - t)
        self.updates += 1
        return np.maximum(np.abs(y - q) / unit, 1) ** self.exponent
