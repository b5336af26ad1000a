"""Files: received, kept, compared with the database, and removed."""
