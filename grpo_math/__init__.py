"""grpo-math: train language models to reason from rewards that a program can check."""

__version__ = "0.1.0"
