"""Storage SCP: from the PDU to Success (PS3.4 Annex B)."""
