"""Training routers on a frozen model: batches, objective, constraint, trainer. One recipe is one run."""
