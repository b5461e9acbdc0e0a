"""How many drafts a step should verify: what they gain, what they cost, and who decides."""
