"""A real multi-node Kubernetes on one Linux machine, for Holdfast's demo and tests.

Standard library only: this runs before any virtual environment exists. `cli` is the way in, `cluster` puts the
parts together (`prepare`, `network`, `controlplane`, `node`, `storage`, `s3`), and `cleanup` takes them away.
"""
