"""The Kubernetes operator: observe -> plan (in core) -> write status -> act, one loop for each TrainingJob.

`handlers` turns kopf's watch events into wake-ups of a `reconciler`; everything that is decided is decided by
`holdfast_core.planner`. No checkpoint bytes pass through here, and the operator may be down at any time.
"""
