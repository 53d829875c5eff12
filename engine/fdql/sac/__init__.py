"""The learner: networks, closed update formulas, the policy; knows no process and no replay."""
