"""A Spark session for a preparation: the caller's cluster, or a local one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hisac_rec.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

INSTALL = "python requirements/install.py spark, or pip install 'hisac-rec[spark]'"
OURS = {
    "spark.sql.session.timeZone": "UTC",  # as DuckDB has times without a zone
    "spark.sql.ansi.enabled": "true",  # a value that does not fit is an error, not a null
    "spark.sql.caseSensitive": "false",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # made a time again by our reader
}
"""Settings on which the rows depend."""


def open_session(
    origin: str, memory_limit: str, threads: int | None, settings: Sequence[str]
) -> SparkSession:
    """Start Spark, or join the session that ``spark-submit`` has started.

    Args:
        origin: the definition's file, for messages.
        memory_limit: of the driver, "4GB"; where Spark is local, of all of it.
        threads: of a local Spark; None: one per core.
        settings: "KEY=VALUE" each; ``spark.master`` names a cluster.

    Raises:
        UserError: pyspark, sqlglot or Java is missing; a setting is none.
    """
    missing = [name for name in ("pyspark", "sqlglot") if find_spec(name) is None]
    if missing:
        raise UserError(f"--engine spark needs {' and '.join(missing)}: {INSTALL}")
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    given = {
        "spark.driver.memory": f"{_megabytes(memory_limit)}m",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.master": f"local[{threads or '*'}]",
    }
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.startswith("spark."):
            raise UserError(f"--spark {setting}: expected spark.KEY=VALUE")
        if key in OURS:
            raise UserError(f"--spark {setting}: is {OURS[key]} here, the rows depend on it")
        given[key] = value
    builder = SparkSession.builder.appName(f"hisac-rec prepare {origin}")
    for key, value in (given | OURS).items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except (PySparkException, OSError) as error:
        raise UserError(
            f"Spark does not start ({error}); it needs Java 17 or newer on the PATH or at JAVA_HOME"
        ) from None
    session.sparkContext.setLogLevel("OFF")  # what goes wrong is raised
    return session


def _megabytes(amount: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", amount, re.IGNORECASE)
    if found is None:
        raise UserError(f"--memory-limit {amount!r}: expected an amount such as 4GB")
    return max(512, int(float(found[1]) * 1024.0 ** ("KMGT".index(found[2].upper()) - 1)))
