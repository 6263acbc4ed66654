"""The demo, and what it shares with the end-to-end tests: a real job on a real Kubernetes, and one fault after another.

`kube` talks to the API server, `clusters` to the machine under it, `jobs` and `steplog` watch a training job, `faults` breaks
things, `measure` says what that cost. `stages` and `__main__` are the demo itself.
"""
