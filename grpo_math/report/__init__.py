"""Pictures of runs, made from what is in their folders. Imports neither torch nor, until one is drawn, matplotlib."""
