"""Run programs that a model wrote, kept from the rest of the machine and from using too much of it."""
