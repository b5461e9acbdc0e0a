"""How many drafted tokens to verify: acceptance prediction, step times, and policies."""
