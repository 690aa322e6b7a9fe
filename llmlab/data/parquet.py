"""Parquet files, read in row groups (needs the extra `train-extras`)."""

from collections.abc import Iterator
from pathlib import Path

from llmlab.errors import DataError, MissingExtraError

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    raise MissingExtraError("pyarrow", "train-extras") from error


def read_parquet(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, text) for every row that has a text in the column `text`.

    Raises:
        DataError: the file is not parquet or has no column `text`.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise DataError(
                    f"{path} has the columns {columns}; it needs a column 'text': rename one"
                )
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    yield f"{path}#{row}", text or ""
                    row += 1
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {error}; check it is complete") from error
