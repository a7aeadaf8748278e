"""Parquet files that tell when a bit of them is no longer what was written.

Every page carries a checksum of its bytes, which is compared when the page is read. Files of
others, without checksums, are read all the same.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

WRITING: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""Options of every ``ParquetWriter`` and ``write_table``."""

READING: dict[str, Any] = {"page_checksum_verification": True}
"""Options of every ``ParquetFile`` and ``read_table``."""

DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What a damaged file raises on reading."""
