"""`holdfast run`: the same sidecar, launcher and planner as on a cluster, as processes of this machine.

`driver` observes, plans and applies, as the operator does; `pod` stands for the one pod there is; `agent` talks to its sidecar;
`screen` is what the user sees.
"""
