"""Drawn radiographs: phantoms of a child's chest and hand whose content is known because it was drawn.

Each image starts as a map of attenuation. Every structure adds its own attenuation, as for real X-rays; a
film curve then turns attenuation into grey values. Points are (x, y) in units of the image's width and
height, from the top left corner; the patient's right is on the left of a frontal image.
"""

from pacs_node.demo.phantom.frontal import Zone, frontal_chest
from pacs_node.demo.phantom.hand import hand
from pacs_node.demo.phantom.lateral import lateral_chest
from pacs_node.demo.phantom.plate import FloatImage

__all__ = ["FloatImage", "Zone", "frontal_chest", "hand", "lateral_chest"]
