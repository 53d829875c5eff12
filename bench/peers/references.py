"""Scores published for the environments, for bench/scores.py."""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.85  # of the way from random to the best published score


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known of an environment: mean returns, and who published the best one."""

    random: float
    best: float
    by: str

    def normalised(self, score: float) -> float:
        """0 at the random policy's score, 1 at the best published one."""
        return (score - self.random) / (self.best - self.random)

    @property
    def line(self) -> float:
        """The return whose normalised score is 0.85."""
        return self.random + SHARE * (self.best - self.random)


# Most of the best are one run with settings tuned for the environment. zoo: the table of trained
# agents in DLR-RM/rl-baselines3-zoo, benchmark.md; zoo 2: of its predecessor, araffin/
# rl-baselines-zoo; SLM: kengz/SLM-Lab, docs/BENCHMARKS.md, training returns of 4 sessions; CleanRL:
# its page on C51; Dopamine: google/dopamine, its JSON of games with sticky actions. zoo measured
# LunarLander-v2, which differs little from v3.
# random: uniform actions over 10 to 200 episodes, gymnasium 1.4, pybullet 3.2.7; of Atari the
# table in deepmind/dqn_zoo, atari_data.py.
REFERENCES = {
    "CartPole-v1": Reference(22.7, 500.0, "DQN, 50k steps, zoo"),
    "Acrobot-v1": Reference(-494.0, -69.1, "QR-DQN, 100k steps, zoo"),
    "MountainCar-v0": Reference(-200.0, -100.8, "DQN, 120k steps, zoo"),
    "LunarLander-v3": Reference(-192.0, 265.9, "Double DQN with priorities, 300k steps, SLM"),
    "Pendulum-v1": Reference(-1208.0, -145.7, "CrossQ, 300k steps, SLM"),
    "MountainCarContinuous-v0": Reference(-33.0, 96.7, "ARS, 500k steps, zoo"),
    "LunarLanderContinuous-v3": Reference(-211.0, 278.0, "TQC, 500k steps, zoo"),
    "BipedalWalker-v3": Reference(-101.0, 329.8, "TQC, 500k steps, zoo"),
    "HalfCheetahBulletEnv-v0": Reference(-1292.0, 3675.0, "TQC, 1M steps, zoo"),
    "AntBulletEnv-v0": Reference(356.0, 3485.0, "SAC, zoo 2"),
    "HopperBulletEnv-v0": Reference(21.0, 2744.0, "TD3, zoo 2"),
    "Walker2DBulletEnv-v0": Reference(17.0, 2509.0, "TQC, 1M steps, zoo"),
    "HumanoidBulletEnv-v0": Reference(-32.0, 2048.0, "SAC, 20M steps, zoo 2"),
    "bench.novel:CartPoleNoVel": Reference(22.7, 500.0, "PPO-LSTM, 100k steps, zoo"),
    "bench.novel:PendulumNoVel": Reference(-1208.0, -217.9, "PPO-LSTM, 100k steps, zoo"),
    "bench.novel:MountainCarContinuousNoVel": Reference(-33.0, 91.5, "PPO-LSTM, 300k steps, zoo"),
    "bench.bitflip:BitFlip15": Reference(0.0, 1.0, "DQN with HER, Andrychowicz 2017"),
    "PongNoFrameskip-v4": Reference(-20.7, 20.99, "PPO, 10M steps, zoo"),
    "BreakoutNoFrameskip-v4": Reference(1.7, 461.9, "C51, 10M steps, CleanRL"),
    "ALE/Pong-v5": Reference(-20.7, 20.5, "IMPALA-IQN, 200M frames, Dopamine"),
    "ALE/Breakout-v5": Reference(1.7, 294.0, "IMPALA-IQN, 10M frames, Dopamine"),
    "BeamRiderNoFrameskip-v4": Reference(364.0, 17123.0, "QR-DQN, 10M steps, zoo"),
    "QbertNoFrameskip-v4": Reference(164.0, 15627.0, "PPO, 10M steps, zoo"),
    "SeaquestNoFrameskip-v4": Reference(68.0, 2558.0, "QR-DQN, 10M steps, zoo"),
    "SpaceInvadersNoFrameskip-v4": Reference(148.0, 1900.0, "QR-DQN, 10M steps, zoo"),
    "EnduroNoFrameskip-v4": Reference(0.0, 3231.0, "QR-DQN, 10M steps, zoo"),
    "MsPacmanNoFrameskip-v4": Reference(307.0, 2683.0, "DQN, 10M steps, zoo"),
}
