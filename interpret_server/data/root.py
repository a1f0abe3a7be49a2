"""The folder that data sets lie in, and that no name leads out of it."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ..errors import InvalidRequest, NotFound
from .calls import FIELD
from .columns import Shape
from .csv_table import CsvTable
from .parquet_table import ParquetTable
from .sets import Arrays, DataSet, ImageFolder

_TABLES = {".csv": CsvTable, ".parquet": ParquetTable}
_ENDINGS = ("", ".npz", ".npy", *_TABLES)
_LONGEST = 1024


class DataRoot:
    """Opens data sets by name.

    Args:
        folder: that they lie in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def open(
        self,
        name: str,
        inputs: Sequence[str] = (),
        shape: Shape = Shape(),  # noqa: B008
    ) -> DataSet:
        """A `.npz`, `.npy`, `.csv` or `.parquet` file, or a folder of images.

        Args:
            name: path below the data root; the ending may be left out.
            inputs: names of the model's inputs.
            shape: of the model's rows, which tables are brought into.

        Raises:
            InvalidRequest: the name leads out of the root, or the file is not what it should be.
            FailedPrecondition: what reads such files is not installed.
            NotFound: there is no such data set.
        """
        path = self._find(name)
        try:
            if path.is_dir():
                return ImageFolder(path, name, self._folder)
        except OSError:
            raise InvalidRequest.field(FIELD, f"{name} cannot be read") from None
        if path.suffix not in _ENDINGS[1:] or not path.is_file():
            raise InvalidRequest.field(
                FIELD,
                f"{name} is neither a {', '.join(_ENDINGS[1:-1])} or {_ENDINGS[-1]} file nor a "
                "folder of images",
            )
        if path.suffix not in _TABLES:
            return Arrays(path, name, inputs)
        if len(inputs) > 1:
            raise InvalidRequest.field(
                FIELD, f"{name} is one table, and the model takes {' and '.join(inputs)}"
            )
        return _TABLES[path.suffix](path, name, shape)

    def _find(self, name: str) -> Path:
        if not _is_name(name):
            raise InvalidRequest.field(
                f"{FIELD}.name",
                "give a path below the data root, without hidden parts, such as mnist/test.npz",
            )
        for ending in _ENDINGS:
            try:
                path = (self._folder / f"{name}{ending}").resolve(strict=True)
            except (OSError, RuntimeError):
                continue
            if not path.is_relative_to(self._folder):
                raise InvalidRequest.field(
                    f"{FIELD}.name", f"{name} is a link that leads out of the data root"
                )
            return path
        raise NotFound(f"{FIELD}: there is no data set {name[:80]!r}{self._hint(name)}")

    def _hint(self, name: str) -> str:
        known = sorted(
            item.stem if item.suffix in _ENDINGS else item.name
            for item in self._folder.iterdir()
            if not item.name.startswith(".")
        )
        close = get_close_matches(name, known, n=3)
        return f"; did you mean {', '.join(close)}?" if close else ""


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _LONGEST and all(
        part and not part.startswith(".") and "\\" not in part and part.isprintable()
        for part in name.split("/")
    )
