"""What the figures measured on a cluster share: `site()` (in `sites`) brings up all that a job needs and takes it away again.

`holdfast_demo` does the work (clusters, jobs, faults, measuring); here it is put together for the benchmark. `kubeflow` is the
peer on a cluster, `story` the faults that both sides are hit by, `picture` what came of them.
"""

from .sites import JobSpec, Site, site

__all__ = ["JobSpec", "Site", "site"]
