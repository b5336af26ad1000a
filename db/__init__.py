"""The results database: tables, migrations, and every SQL statement of the node."""
