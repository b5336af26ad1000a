"""What all stages of one destination have in common: each destination is a lane of its own in the queue."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.session import Database
from pacs_node.config import DeliverSettings, Destination


class DestinationStage:
    """Work for one destination, which waits for no other.

    Parameters
    ----------
    database
        Where jobs and deliveries stand.
    destination
        The PACS.
    ae_title
        The node's own.
    settings
        How long and how often it is tried.
    """

    def __init__(
        self, database: Database, destination: Destination, ae_title: str, settings: DeliverSettings
    ) -> None:
        self.lane = destination.name
        self._database = database
        self._destination = destination
        self._ae_title = ae_title
        self._settings = settings

    def give_up(self, session: Session, ref: int) -> None:
        """Nothing more to record: the job says it all."""
