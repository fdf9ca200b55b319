"""Rollouts: the sampler, the session, and the Lightning module that runs a recipe."""
