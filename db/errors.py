"""What can go wrong with the results database; no driver exception leaves `db.session`.

::

    DatabaseError
    ├── DatabaseDown      it cannot be reached or refuses work for now: the same may succeed later
    ├── WriteConflict     another transaction came first: run this one again, on what it left
    └── SchemaMismatch    its schema is not the one of this program
"""


class DatabaseError(Exception):
    """Root of the tree; the message is one sentence without credentials."""


class DatabaseDown(DatabaseError):
    """The database cannot be reached, is locked for too long, or is out of space."""


class WriteConflict(DatabaseError):
    """A constraint forbade the write, because another transaction came first."""


class SchemaMismatch(DatabaseError):
    """The schema is newer than this program, or belongs to another program."""
