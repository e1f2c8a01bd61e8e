"""What trains. base.py has the protocol; each other file is one implementation."""
