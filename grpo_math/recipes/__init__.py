"""One loop each: grpo.py, sft.py. run.py surrounds them with what every run has."""
