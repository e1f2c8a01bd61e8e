"""`python -m grpo_math`, the same as the console script."""

from grpo_math.cli import main

main()
