"""Everyday facts in prompts of kinds that no training has seen."""
