"""Evaluation: pass@k of a model on tasks, in figures that can be quoted and repeated."""
