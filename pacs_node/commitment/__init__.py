"""Storage Commitment Push Model (PS3.4 Annex J), in both directions."""
