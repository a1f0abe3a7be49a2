"""Data sets that lie on the server: found below one folder, read with numpy alone."""

from .calls import StoredCall, StoredRows
from .root import DataRoot
from .sets import DataSet
from .worker import DataWorker

__all__ = ["DataRoot", "DataSet", "DataWorker", "StoredCall", "StoredRows"]
