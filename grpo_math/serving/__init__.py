"""How `grpo-math serve` runs vLLM's own server: its command line, its process, and who watches over it."""
