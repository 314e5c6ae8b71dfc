"""Runs on several GPUs and nodes: shared packs (Ulysses), shared weights (FSDP2), and what ranks add up."""
