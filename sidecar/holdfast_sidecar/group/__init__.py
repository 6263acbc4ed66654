"""The sidecars of a job agree on which steps every rank has: `member` reports, `coordinator` (beside rank 0) decides."""
