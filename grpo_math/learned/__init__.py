"""Reward models as rewards in the loop, and guards against pleasing them alone."""
