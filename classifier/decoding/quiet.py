"""The one way to silence what libraries warn of while they read DICOM objects; safe between threads.

pydicom warns of values that break the Standard and quotes them, which can print a patient's value. This
package judges the values itself. `warnings.catch_warnings` is not used: it swaps the filters of the whole
process, so that one thread brings the warnings back while another one reads.
"""

from __future__ import annotations

import re
import warnings

from PIL.Image import DecompressionBombWarning

_READERS = r"(pydicom|pynetdicom|highdicom|PIL|openjpeg|libjpeg|rle|jpeg_ls)(\.|$)"
_COMPILED = re.compile(_READERS)  # as `warnings` keeps it


def silence_warnings() -> None:
    """Ignore, from now on and in all threads, what readers of DICOM objects and pictures warn of."""
    if not any(entry[3] == _COMPILED for entry in warnings.filters):
        warnings.filterwarnings("ignore", category=DecompressionBombWarning)  # max_pixels is the limit here
        warnings.filterwarnings("ignore", category=UserWarning, module=_READERS)
