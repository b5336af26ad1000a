"""Associations over TCP (PS3.8), and C-ECHO and C-STORE as SCU; sole user of pynetdicom's private names."""
