"""How many machines become the ranks of one run, through launchers that exist already: one file for each."""
