"""Bytes of DICOM files: headers and file meta information (PS3.5, PS3.10)."""
