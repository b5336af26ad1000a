"""What an A-ASSOCIATE-RQ or -AC says, as pynetdicom's primitives (PS3.8 7.1.1)."""

from __future__ import annotations

from typing import Any

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext

from pacs_node.network.associate_pdu import (
    APPLICATION_CONTEXT,
    AssociationRequest,
    UserInformation,
    read_acceptance,
)


def indication(request: AssociationRequest) -> A_ASSOCIATE:
    """Return the A-ASSOCIATE indication of a request."""
    primitive = _primitive(request.called_ae_title, request.calling_ae_title, request.user)
    contexts = []
    for proposed in request.contexts:
        context = _context(proposed.context_id, proposed.transfer_syntaxes)
        context.abstract_syntax = UID(proposed.abstract_syntax)
        contexts.append(context)
    primitive.presentation_context_definition_list = contexts
    return primitive


def acceptance(association: Association, body: bytes) -> A_ASSOCIATE:
    """Return the A-ASSOCIATE confirmation of an A-ASSOCIATE-AC PDU without its header.

    Raises
    ------
    ProtocolError
    """
    proposed = {
        int(context.context_id or 0): {str(syntax) for syntax in context.transfer_syntax}
        for context in association.requestor.requested_contexts
    }
    accepted = read_acceptance(body, proposed)
    primitive = _primitive(association.acceptor.ae_title, association.requestor.ae_title, accepted.user)
    contexts = []
    for one in accepted.contexts:
        context = _context(one.context_id, [one.transfer_syntax] if one.transfer_syntax else [])
        context.result = one.result
        contexts.append(context)
    primitive.presentation_context_definition_results_list = contexts
    primitive.result = 0
    return primitive


def _primitive(called_ae_title: str, calling_ae_title: str, user: UserInformation) -> A_ASSOCIATE:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.called_ae_title, primitive.calling_ae_title = called_ae_title, calling_ae_title
    primitive.user_information = list(_user_information(user))
    return primitive


def _context(context_id: int, syntaxes: Any) -> PresentationContext:
    context = PresentationContext()
    context.context_id = context_id
    context.transfer_syntax = [UID(syntax) for syntax in syntaxes]
    return context


def _user_information(user: UserInformation) -> Any:
    largest = MaximumLengthNotification()
    largest.maximum_length_received = user.largest_pdu
    yield largest
    if user.implementation_class_uid:
        class_uid = ImplementationClassUIDNotification()
        class_uid.implementation_class_uid = UID(user.implementation_class_uid)
        yield class_uid
    if user.implementation_version_name:
        name = ImplementationVersionNameNotification()
        name.implementation_version_name = user.implementation_version_name
        yield name
    for sop_class, (is_scu, is_scp) in user.roles.items():
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid = UID(sop_class)
        role.scu_role, role.scp_role = is_scu, is_scp
        yield role
