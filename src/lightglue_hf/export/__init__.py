"""Graphs for ONNX Runtime and OpenVINO: what is traced, how it is written, and whether it computes what it should."""

from .check import Check, ExportError
from .exporter import FILES, ExportOptions, export

__all__ = ["FILES", "Check", "ExportError", "ExportOptions", "export"]
