"""Send reports to one destination: in order, with growing pauses, for days; act on the DIMSE status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy.orm import Session

from db import deliveries
from db.queue import Claimed, Kind
from db.rows import PendingDelivery
from pacs_node import log
from pacs_node.delivering.link import DeliveryResult, Link, open_link
from pacs_node.errors import DestinationRefused, Retryable
from pacs_node.lanes import DestinationStage
from pacs_node.worker import Done, GivenUp, Later, Outcome, Settled

_log = log.get(__name__)


class DeliverStage(DestinationStage):
    """Send reports to one destination: all waiting reports over one association."""

    kind = Kind.DELIVER
    batch_size = 16

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:
        """Send the reports of the jobs, the revisions of each study in order; record each when it is sent."""
        with self._database.read() as session:
            pending = deliveries.pending(session, [job.ref for job in jobs])
        work = list(zip(jobs, pending, strict=True))
        waiting = Later(self._settings.retry_seconds, "Waits for the earlier revision")
        yield [(job, waiting) for job, delivery in work if delivery.waits_for_earlier]
        free = [pair for pair in work if not pair[1].waits_for_earlier]
        if free:
            yield from self._send(free, may_go_on)

    def give_up(self, session: Session, ref: int) -> None:
        """Record the failure in the delivery too."""
        why = "Sending was given up after too many attempts; see the log"
        deliveries.record_delivery(session, ref, state="failed", error=why, updated_at=datetime.now(UTC))

    def _send(
        self, work: Sequence[tuple[Claimed, PendingDelivery]], may_go_on: Callable[[], bool]
    ) -> Iterator[Settled]:
        left = list(work)
        try:
            with open_link(self._destination, self._ae_title, self._settings, self._tls) as link:
                while left and link.is_open:
                    job, delivery = left.pop(0)
                    yield [(job, self._send_one(delivery, link, may_go_on))]
        except DestinationRefused as error:
            yield [(job, self._refused(delivery, error)) for job, delivery in left]
            return
        except Retryable as error:
            _log.warning("destination put off", destination=self.lane, reports=len(left), cause=str(error))
            yield [(job, self._retry(delivery, error)) for job, delivery in left]
            return
        # The rest did not fail: with the shorter pause, they come before the report that broke the
        # association.
        yield [(job, Later(self._settings.retry_seconds, "The association broke")) for job, _ in left]

    def _send_one(self, delivery: PendingDelivery, link: Link, may_go_on: Callable[[], bool]) -> Outcome:
        if not may_go_on():
            return Later(0, "Another worker may have taken over and sends it")
        try:
            return self._delivered(delivery, link.send(delivery.content, delivery.result))
        except DestinationRefused as error:
            return self._refused(delivery, error)
        except Retryable as error:
            self._tell("delivery put off", delivery, cause=str(error))
            return self._retry(delivery, error)

    def _delivered(self, delivery: PendingDelivery, sent: DeliveryResult) -> Done:
        self._tell("report delivered", delivery, status=f"0x{sent.status:04X}")
        now = datetime.now(UTC)
        return Done(
            partial(
                deliveries.record_delivered,
                delivery_id=delivery.id,
                destination=self.lane,
                commits=sent.commits,
                at=now,
                give_up_at=now + timedelta(hours=self._settings.give_up_hours),
                sop_class_uid=sent.sop_class_uid,
                sop_instance_uid=sent.sop_instance_uid,
                status=sent.status,
            )
        )

    def _refused(self, delivery: PendingDelivery, error: Exception) -> GivenUp:
        self._tell("report refused", delivery, cause=str(error))
        return GivenUp(str(error), self._try(delivery, error, state="failed"))

    def _retry(self, delivery: PendingDelivery, error: Exception) -> Outcome:
        if datetime.now(UTC) >= delivery.give_up_at:
            self._tell("delivery given up", delivery, cause=str(error))
            return GivenUp(str(error), self._try(delivery, error, state="failed"))
        pause = min(
            self._settings.max_retry_seconds, self._settings.retry_seconds * 2 ** min(delivery.tries, 20)
        )
        return Later(pause, str(error), self._try(delivery, error, state="pending"))

    def _try(self, delivery: PendingDelivery, error: Exception, state: str) -> Callable[[Session], None]:
        return partial(
            deliveries.record_try,
            delivery_id=delivery.id,
            state=state,
            error=str(error),
            status=getattr(error, "status", None),
            updated_at=datetime.now(UTC),
        )

    def _tell(self, event: str, delivery: PendingDelivery, **details: object) -> None:
        write = _log.info if event == "report delivered" else _log.warning
        write(
            event,
            destination=self.lane,
            study=delivery.study_instance_uid,
            revision=delivery.revision,
            result=delivery.result,
            **details,
        )
