"""Load the model: the only door to torch."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime

from db import queries
from db.rows import StoredModel
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.errors import InvalidReport, ModelUnusable
from pacs_node.reporting.from_rows import algorithm
from pacs_node.scoring.stage import Scorer

_log = log.get(__name__)


def load_model(settings: Settings, database: Database) -> tuple[Scorer, StoredModel]:
    from classifier.config import DecodeLimits, Eligibility  # noqa: PLC0415
    from classifier.errors import ClassifierError  # noqa: PLC0415
    from classifier.scoring.predict import Predictor  # noqa: PLC0415 - torch, in this process alone

    wanted = settings.classifier
    rules = Eligibility(wanted.unknown_body_part, wanted.unknown_view, wanted.max_pixels)
    limits = DecodeLimits(wanted.decode_seconds, wanted.decode_mebibytes)
    try:
        predictor = Predictor.load(
            wanted.model,
            wanted.device,
            rules,
            cautious=wanted.is_cautious,
            engine=wanted.engine,
            unknown_age=wanted.unknown_age,
            limits=limits,
        )
        predictor.start()
        card = predictor.card
        model = StoredModel(
            id=0,
            sha256=card.sha256,
            name=card.name,
            version=card.version,
            threshold=card.threshold,
            preprocessing=card.preprocessing_text,
        )
        algorithm(model)  # what cannot stand in a report must fail now, not then
        row = {name: value for name, value in asdict(model).items() if name != "id"}
        with database.write() as session:
            row["card"] = card.model_dump_json()
            model = replace(model, id=queries.register_model(session, row, datetime.now(UTC)))
    except (ClassifierError, InvalidReport) as error:
        raise ModelUnusable(str(error)) from error
    _log.info(
        "model loaded",
        model=card.name,
        version=card.version,
        sha256=card.sha256,
        device=predictor.device,
        engine=predictor.engine,
    )
    return predictor, model
