"""Every error of the node, in one tree.

::

    PacsNodeError
    ├── UserError            the user can fix it: exit code 2, one sentence
    │   ├── ConfigError          config.toml or the environment holds something it should not
    │   ├── DatabaseUnusable     cannot be reached, or its schema is newer than this program
    │   ├── SpoolUnusable        the spool folder cannot be written
    │   ├── PortInUse            another program listens on the DICOM port
    │   ├── TlsUnusable          a file of [tls] is missing, damaged or not the right one
    │   ├── ModelUnusable        the checkpoint is missing, damaged or not understood
    │   └── PeerError            the DICOM peer named on the command line did not answer as it should
    │       └── CutShort             a PACS has more matches than it answers to one query
    ├── Retryable            the same work may succeed later: back off, try again until the deadline
    │   ├── DestinationDown      no association, or it broke
    │   └── DestinationBusy      the peer answered C-STORE with a failure status that may pass
    ├── Terminal             trying again cannot help: the job fails, visibly
    │   └── DestinationRefused   the peer will not take any report class, or says the object is wrong
    ├── NotAssociated        no association came about; the caller says what that means to it
    │   └── TakesNothing         the peer accepts none of the presentation contexts
    ├── SignInFailed         a provider of log-ins did not say who somebody is, or who may not look
    ├── Refused              a received SOP instance is refused, with the DIMSE status to answer
    ├── UnreadableHeader     an object does not parse
    ├── ProtocolError        a peer sent what breaks PS3.7 or PS3.8: the association is aborted
    └── InvalidReport        no report can be built from this input
"""


class PacsNodeError(Exception):
    """Root of the tree; ``str()`` is one sentence that says what to do."""


class UserError(PacsNodeError):
    """The user can fix it."""


class ConfigError(UserError):
    """config.toml or the environment holds a value that it should not."""


class DatabaseUnusable(UserError):
    """The results database cannot be reached, or its schema is newer than this program."""


class SpoolUnusable(UserError):
    """The spool folder cannot be written."""


class PortInUse(UserError):
    """Another program listens on the DICOM port."""


class TlsUnusable(UserError):
    """A file of section ``tls`` is missing, damaged or not the right one."""


class ModelUnusable(UserError):
    """The checkpoint is missing, damaged or not understood."""


class PeerError(UserError):
    """The DICOM peer named on the command line did not answer as it should."""


class CutShort(PeerError):
    """The PACS has more matches than it answers to one query."""


class Retryable(PacsNodeError):
    """The same work may succeed later."""


class DestinationDown(Retryable):
    """No association with the destination, or the association broke."""


class DestinationBusy(Retryable):
    """The destination answered C-STORE with a failure status that may pass."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Terminal(PacsNodeError):
    """Trying again cannot help."""


class DestinationRefused(Terminal):
    """The destination accepts no report class, or says that the object is wrong.

    Parameters
    ----------
    status
        The C-STORE response status, if there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NotAssociated(PacsNodeError):
    """No association was established; ``str()`` is half a sentence that follows the name of the peer."""


class TakesNothing(NotAssociated):
    """The peer accepts none of the presentation contexts."""


class SignInFailed(PacsNodeError):
    """Somebody cannot be signed in by the provider of log-ins."""


class Refused(PacsNodeError):
    """A received SOP instance is refused.

    Parameters
    ----------
    status
        The C-STORE response status (PS3.4 B.2.3).
    comment
        Error Comment (0000,0902), at most 64 characters.
    """

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.comment = comment[:64]


class UnreadableHeader(PacsNodeError):
    """The object does not parse; the message says where, without patient data."""


class ProtocolError(PacsNodeError):
    """A peer violated PS3.7 or PS3.8; ``str()`` says how, for the log.

    Parameters
    ----------
    source, reason
        Source and reason of the A-ABORT that answers it (PS3.8 9.3.8); the default source is the
        service-user.
    """

    def __init__(self, message: str, source: int = 0, reason: int = 0) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason


class InvalidReport(PacsNodeError):
    """No report can be built from this input: it violates the contract, or names no SOP instance."""
