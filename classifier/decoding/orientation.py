"""How the stored image lies, by Patient Orientation, and how it is turned upright.

Radiologists look at a frontal chest image as if they faced the patient: the head is up, and the patient's
left is at the right of the image, for PA and AP alike. Patient Orientation of such an image is L\\F: rows run
to the left, columns to the feet (PS3.3 C.7.6.1.1.1). The training images lie in this way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray
from pydicom.dataset import Dataset

from classifier.decoding.attributes import name, stated
from classifier.decoding.tags import number_or_text, plain, quote
from classifier.errors import NotScorable
from classifier.reasons import Reason

_HORIZONTAL, _VERTICAL = "LRAP", "HF"
# Degrees and flips with which a device or a viewer says that it turned the image, or that one should
_ROTATIONS = ("FieldOfViewRotation", "ImageRotation")
_FLIPS = {"FieldOfViewHorizontalFlip": "YES", "ImageHorizontalFlip": "Y"}


class Turn(NamedTuple):
    """What makes a stored image upright, in this order.

    Attributes
    ----------
    transposed
        Rows and columns are exchanged.
    mirrored
        Then left and right are exchanged.
    upside_down
        Then top and bottom are exchanged.
    """

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    def applied(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return a stored image, (rows, columns, ...), upright; a view of it where nothing has to move."""
        image = stored.swapaxes(0, 1) if self.transposed else stored
        image = image[:, ::-1] if self.mirrored else image
        return image[::-1] if self.upside_down else image

    def undone(self, upright: NDArray[Any]) -> NDArray[Any]:
        """Return what was made of the upright image, such as a heat map, as the stored image lies."""
        image = upright[::-1] if self.upside_down else upright
        image = image[:, ::-1] if self.mirrored else image
        return image.swapaxes(0, 1) if self.transposed else image


UPRIGHT = Turn()


def turn(header: Dataset) -> Turn:
    """Read how the image has to be turned; without Patient Orientation it counts as upright.

    Returns
    -------
    Turn
        Of a lateral image, what brings the head up; its sides are left as they are.

    Raises
    ------
    NotScorable
        ``NO_ORIENTATION`` when Patient Orientation is not understood, or when it asks for a turn while
        another attribute says that the image was turned already: the two may mean the same turn.
    """
    directions = [plain(value) for value in stated(header, "PatientOrientation")]
    if not any(directions):
        return UPRIGHT
    found = _turn(directions)
    if found is None:
        told = quote("/".join(directions))
        raise NotScorable(Reason.NO_ORIENTATION, f"Patient Orientation is {told}, which is not understood")
    other = _other_turn(header)
    if found != UPRIGHT and other:
        told = quote("/".join(directions))
        raise NotScorable(Reason.NO_ORIENTATION, f"Patient Orientation is {told}, and {other}")
    return found


def _turn(directions: list[str]) -> Turn | None:
    if len(directions) != 2 or not all(directions):
        return None
    row, column = directions[0][0], directions[1][0]  # what follows the first letter is a tilt
    is_transposed = row in _VERTICAL
    if is_transposed:
        row, column = column, row
    if row not in _HORIZONTAL or column not in _VERTICAL:
        return None
    return Turn(is_transposed, row == "R", column == "H")


def _other_turn(header: Dataset) -> str | None:
    """Return the attribute that tells of another turn, and its value."""
    for keyword in _ROTATIONS:
        for value in stated(header, keyword):
            if number_or_text(value) not in (0.0, 360.0, ""):
                return f"{name(keyword)} is {quote(value)}"
    for keyword, flipped in _FLIPS.items():
        for value in stated(header, keyword):
            if plain(value) == flipped:
                return f"{name(keyword)} is {quote(value)}"
    return None
