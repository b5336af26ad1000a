"""Links that open a study in the site's own viewer."""

from __future__ import annotations

from urllib.parse import quote

from db.reading_list import ListedStudy


def address(template: str, study: ListedStudy) -> str:
    """Return the address of a study in the viewer; empty without a template.

    What comes from the study is escaped, so that it can never become another part of the address.
    """
    values = {
        "study": study.study_instance_uid,
        "patient": study.patient_id,
        "accession": study.accession_number,
    }
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", quote(value, safe=""))
    return template
