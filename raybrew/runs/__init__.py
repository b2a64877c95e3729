"""A run, from the job to the report: resolve, precompute, train, and what its folder holds."""
