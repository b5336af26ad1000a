"""Draw the heat maps that reports refer to, for destinations that want them; `delivering` sends them."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from classifier.heat_map import HeatMap
from db.queue import Kind
from db.rows import ReportToDraw, StoredInstance, StoredModel
from pacs_node.reporting.beside_stage import BesideStage
from pacs_node.reporting.conclusion import warning_of
from pacs_node.reporting.from_rows import image_result
from pacs_node.reporting.heat_map_picture import captioned, overlaid
from pacs_node.reporting.input import ImageResult, heat_map_uids
from pacs_node.reporting.report import EncodedReport, parsed
from pacs_node.reporting.secondary_capture import Source, capture
from pacs_node.reporting.study_state import newest_copies

_LONGEST_SIDE = 768  # pixels; the map has five cells, and the bytes stay in the database
_LOST = np.zeros((_LONGEST_SIDE, _LONGEST_SIDE), np.float32)
_WHAT = "What the model used, not where disease is"


class HeatMapStage(BesideStage):
    """Draw heat maps."""

    kind = Kind.HEAT_MAP
    result = "heatmap"
    called = "heat map"

    def make(self, report: ReportToDraw, newest: StoredModel | None) -> list[EncodedReport]:
        """Return the heat maps of a report; of an image that is gone, the map alone."""
        images = newest_copies(report.images)
        results = [image_result(one, Dataset(), newest, shows_heat_map=True) for one in images]
        read = parsed(report.content)
        uids = heat_map_uids(str(read.SeriesInstanceUID), str(read.SOPInstanceUID), results)
        warning = warning_of(str(read.ContentQualification))
        greys = self.decoded([images[at] for at in uids])
        made = []
        for (at, named), grey in zip(uids.items(), greys, strict=True):
            image, heat_map = images[at], _map_of(images[at])
            picture = overlaid(_LOST if grey is None else grey, heat_map, _LONGEST_SIDE)
            written = captioned(picture, heat_map.reach, warning, [*_answer(at, results[at]), _WHAT])
            source = Source(image.sop_class_uid, image.sop_instance_uid)
            made.append(capture(report.content, written, source, at + 1, named))
        return made


def _map_of(image: StoredInstance) -> HeatMap:
    assert image.score is not None
    return HeatMap.from_bytes(image.score.heat_map or b"")


def _answer(at: int, result: ImageResult) -> list[str]:
    algorithm = result.algorithm
    return [
        f"Image {at + 1}: {result.decision}",
        f"Score {result.percent} %, positive from {algorithm.threshold_percent} %",
        f"Model {algorithm.name} {algorithm.version}",
    ]
