"""The checkpoint agent of a pod: owns the arenas, talks to its peers, keeps the durable levels, serves the operator.

It holds no torch and no Kubernetes credentials. Start reading at `app`.
"""
