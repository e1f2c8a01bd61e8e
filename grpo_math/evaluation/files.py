"""What the folder of an evaluation holds, besides the journal of one that is not finished."""

SAMPLES = "samples.jsonl"  # every completion and its verdict
RESULTS = "results.json"  # the figures, and what decides them
PROMPTS = "prompts.jsonl"  # the hash of each prompt
RUN = "run.json"  # command and speed
CURVE = "curve.png"  # pass@k over k
