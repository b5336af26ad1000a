"""The study's answer, and what a report says of it in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pacs_node.reporting.input import ImageResult

WARNING = "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE"
WORDS = {"positive": "PRESENT", "negative": "ABSENT", "undetermined": "UNDETERMINED"}
"""The study's answer as people read it, by decision."""

_UNVERIFIED = "Automated AI output, not verified by a physician."
_NEAR = "the score is too near the threshold"


def study_decision(images: Sequence[ImageResult]) -> str:
    """Return the answer for the study.

    Positive if any image is. Else undetermined if any image is, if none was scored, or if one that was not
    may have shown what the others do not. Else negative.
    """
    decisions = {image.decision for image in images}
    if "positive" in decisions:
        return "positive"
    is_negative = "negative" in decisions and not any(map(_is_open, images))
    return "negative" if is_negative else "undetermined"


def conclusion(images: Sequence[ImageResult], purpose: str) -> str:
    """Return the answer and one sentence that says how it came about, for the first line that people read.

    Parameters
    ----------
    images
        The images of the study with their answers.
    purpose
        Of the node; ``RESEARCH`` adds the warning.
    """
    decision = study_decision(images)
    return f"{answer_of(decision)}. {_how(images, decision)} {warning_of(purpose)}"


def answer_of(decision: str) -> str:
    """Return the study's answer as people read it."""
    return f"Pneumonia: {WORDS[decision]}"


def warning_of(purpose: str) -> str:
    """Return what a reader must know of the answer."""
    return f"{WARNING}." if purpose == "RESEARCH" else _UNVERIFIED


def comment(images: Sequence[ImageResult], purpose: str) -> str:
    """Return what the report says at its end: the highest score, and what was not scored and why."""
    sentences = [_UNVERIFIED]
    if purpose == "RESEARCH":
        sentences.append(f"{WARNING}.")
    # The score of an image that the model does not know the like of means nothing beside the others'
    decided = [image for image in images if image.decision in ("positive", "negative")]
    if decided:
        sentences.append(_score_sentence(decided))
    return " ".join([*sentences, f"{_counts(images)}."])


def why_not(image: ImageResult) -> str:
    """Return why an image was not scored, or why its answer is undetermined, in lower case."""
    if image.reason is None:
        return _NEAR if image.decision == "undetermined" else ""
    meaning = image.reason.meaning
    return meaning if meaning[1:2].isupper() else meaning[:1].lower() + meaning[1:]


def _is_open(image: ImageResult) -> bool:
    return image.decision == "undetermined" or (image.reason is not None and image.reason.leaves_open)


def _how(images: Sequence[ImageResult], decision: str) -> str:
    scored = [image for image in images if image.probability is not None]
    of = f"{len(images)} {'image' if len(images) == 1 else 'images'}"
    said = f"AI scored {len(scored) or 'none'} of {of}"
    if decision == "positive":
        return f"{said} and found pneumonia in {sum(image.decision == 'positive' for image in images)}."
    if decision == "negative":
        return f"{said} and found no pneumonia."
    doubtful = [image for image in images if _is_open(image)] or images
    reasons = dict.fromkeys(why_not(image) for image in doubtful)
    return f"{said}, which leaves the answer open: {'; '.join(reasons)}."


def _counts(images: Sequence[ImageResult]) -> str:
    scored = sum(image.probability is not None for image in images)
    count = f"{scored} of {len(images)} {'image' if len(images) == 1 else 'images'} scored"
    reasons = Counter(image.reason.code for image in images if image.probability is None and image.reason)
    if reasons:
        count += "; not scored: " + ", ".join(f"{n} {code}" for code, n in sorted(reasons.items()))
    doubts = Counter(
        image.reason.code if image.reason else "" for image in images if image.decision == "undetermined"
    )
    if doubts:
        count += "; undetermined: " + ", ".join(f"{n} {code}".rstrip() for code, n in sorted(doubts.items()))
    return count


def _score_sentence(scored: Sequence[ImageResult]) -> str:
    # Scores of two models, or against two thresholds, have no meaningful maximum
    if len({image.algorithm for image in scored}) > 1:
        return "Images were scored by different models or thresholds: see each image."
    highest = max(scored, key=lambda image: image.probability or 0)
    return (
        f"Highest pneumonia score {highest.percent} %, positive from {highest.algorithm.threshold_percent} %."
    )
