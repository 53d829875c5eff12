"""Settings of the peers, as data: RL Baselines3 Zoo, hyperparams/*.yml, commit 22e3ff2.

"lin_x" is the Zoo's notation for a value that falls linearly from x to 0 over n_timesteps. What the
Zoo leaves to the library is left to it here. SBX takes the same settings, as its README says.
"""

from typing import Any

_ACROBOT: dict[str, Any] = {  # DQN's of LunarLander-v3 and Acrobot-v1, QR-DQN's of Acrobot-v1
    "n_timesteps": 100_000, "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000,
    "learning_starts": 0, "gamma": 0.99, "target_update_interval": 250, "train_freq": 4,
    "gradient_steps": -1, "exploration_fraction": 0.12, "exploration_final_eps": 0.1,
    "policy_kwargs": {"net_arch": [256, 256]},
}  # fmt: skip
_LANDER: dict[str, Any] = {  # SAC's and TQC's of LunarLanderContinuous-v3
    "n_timesteps": 500_000, "batch_size": 256, "learning_rate": "lin_7.3e-4",
    "buffer_size": 1_000_000, "ent_coef": "auto", "gamma": 0.99, "tau": 0.01, "train_freq": 1,
    "gradient_steps": 1, "learning_starts": 10_000, "policy_kwargs": {"net_arch": [400, 300]},
}  # fmt: skip
_BULLET: dict[str, Any] = {  # SAC's and TQC's of HalfCheetahBulletEnv-v0
    "n_timesteps": 1_000_000, "learning_rate": 7.3e-4, "buffer_size": 300_000, "batch_size": 256,
    "ent_coef": "auto", "gamma": 0.98, "tau": 0.02, "train_freq": 8, "gradient_steps": 8,
    "learning_starts": 10_000, "use_sde": True,
    "policy_kwargs": {"log_std_init": -3, "net_arch": [400, 300]},
}  # fmt: skip
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("dqn", "CartPole-v1"): {
        "n_timesteps": 50_000, "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000,
        "learning_starts": 1000, "gamma": 0.99, "target_update_interval": 10, "train_freq": 256,
        "gradient_steps": 128, "exploration_fraction": 0.16, "exploration_final_eps": 0.04,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
    ("dqn", "LunarLander-v3"): _ACROBOT,
    ("dqn", "Acrobot-v1"): _ACROBOT,
    ("qrdqn", "Acrobot-v1"): _ACROBOT
    | {"policy_kwargs": {"net_arch": [256, 256], "n_quantiles": 25}},
    ("dqn", "MountainCar-v0"): {
        "n_timesteps": 120_000, "learning_rate": 4e-3, "batch_size": 128, "buffer_size": 10_000,
        "learning_starts": 1000, "gamma": 0.98, "target_update_interval": 600, "train_freq": 16,
        "gradient_steps": 8, "exploration_fraction": 0.2, "exploration_final_eps": 0.07,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
    ("ppo", "CartPole-v1"): {
        "n_envs": 8, "n_timesteps": 100_000, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8,
        "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0, "learning_rate": "lin_0.001",
        "clip_range": "lin_0.2",
    },
    ("ppo", "LunarLander-v3"): {
        "n_envs": 16, "n_timesteps": 1_000_000, "n_steps": 1024, "batch_size": 64,
        "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01,
    },
    ("sac", "Pendulum-v1"): {"n_timesteps": 20_000, "learning_rate": 1e-3},
    ("sac", "MountainCarContinuous-v0"): {
        "n_timesteps": 50_000, "learning_rate": 3e-4, "buffer_size": 50_000, "batch_size": 512,
        "ent_coef": 0.1, "train_freq": 32, "gradient_steps": 32, "gamma": 0.9999, "tau": 0.01,
        "learning_starts": 0, "use_sde": True,
        "policy_kwargs": {"log_std_init": -3.67, "net_arch": [64, 64]},
    },
    ("sac", "LunarLanderContinuous-v3"): _LANDER,
    ("tqc", "LunarLanderContinuous-v3"): _LANDER,
    ("sac", "HalfCheetahBulletEnv-v0"): _BULLET,
    ("tqc", "HalfCheetahBulletEnv-v0"): _BULLET,
}  # fmt: skip
