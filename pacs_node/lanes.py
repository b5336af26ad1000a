"""What all stages of one destination share: each destination has its own lane in the queue."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.session import Database
from pacs_node.config import DeliverSettings, Destination
from pacs_node.config_access import TlsSettings


class DestinationStage:
    """Work for one destination; it never waits for another one.

    Parameters
    ----------
    database
        The database with jobs and deliveries.
    destination
        The PACS.
    ae_title
        The AE title of the node.
    settings
        How long and how often to try.
    tls
        With what to connect to it, if over TLS.
    """

    def __init__(
        self,
        database: Database,
        destination: Destination,
        ae_title: str,
        settings: DeliverSettings,
        tls: TlsSettings | None = None,
    ) -> None:
        self.lane = destination.name
        self._database = database
        self._destination = destination
        self._ae_title = ae_title
        self._settings = settings
        self._tls = tls

    def give_up(self, session: Session, ref: int) -> None:
        """Record nothing more: the job has all the information."""
