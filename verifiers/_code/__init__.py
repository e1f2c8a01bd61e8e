"""The rooms of the verifier `code`."""
