"""Training: episodes → batches → a learner's trace → an objective. Knows no recipe by name and no
benchmark's world."""
