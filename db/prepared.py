"""Statements that are compiled once and passed directly to the driver, for work done for every object.

For a short statement, SQLAlchemy takes several times as long as the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError


class Prepared:
    """One statement for one kind of database.

    Parameters
    ----------
    statement
        A statement of SQLAlchemy Core with a `bindparam` for each value that changes.
    dialect
        Dialect of the connections on which it will run.

    Attributes
    ----------
    sql
        The text that the driver gets.
    """

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self._dialect = dialect
        self._order: list[str] | None = compiled.positiontup
        self._fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        self._converters: dict[str, Callable[[Any], Any]] = {}
        for name, bind in compiled.binds.items():
            converter = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if converter is not None:
                self._converters[name] = converter

    def bound(self, values: Mapping[str, Any]) -> Mapping[str, Any] | tuple[Any, ...]:
        """Return the parameters as the driver gets them."""
        all_values = {**self._fixed, **values}
        for name, convert in self._converters.items():
            all_values[name] = convert(all_values[name])
        return all_values if self._order is None else tuple([all_values[name] for name in self._order])

    def run(self, connection: Connection, **values: Any) -> Sequence[tuple[Any, ...]]:
        """Execute the statement in the connection's transaction; return the rows of the driver.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            An error of the same subclass that SQLAlchemy itself would raise.
        """
        given = self.bound(values)
        driver: Any = connection.connection.driver_connection
        errors = self._dialect.loaded_dbapi.Error
        try:
            cursor = driver.execute(self.sql, given)
            return [] if cursor.description is None else list(cursor.fetchall())
        except errors as error:
            # Without the values: they may identify a patient
            raise DBAPIError.instance(self.sql, None, error, errors, dialect=self._dialect) from error
