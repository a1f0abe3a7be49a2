"""A second plugin, run as a part of the first one's work."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidRequest
from .models.classifier import Classifier
from .plugin import Batch, Job, Plugin


class BoundPlugin:
    """A second plugin with its parameters, run as a part of the first one's work.

    Run it within a step of the first one's `Job.track`: its own steps then observe cancellation
    and deadlines, but are not counted. It shows no previews.

    Attributes:
        plugin: the second plugin.
        params: its parameters, of `plugin.params_type`.
        field: where it stands in the request, such as `params.method`.
    """

    def __init__(self, plugin: Plugin[Any, Any], params: Any, job: Job, field: str) -> None:
        self.plugin, self.params = plugin, params
        self._job, self.field = job, field

    def run(self, model: Classifier, batch: Batch, *, warn: bool | Tensor = False) -> Any:
        """The second plugin's result, of its `result_type`.

        Args:
            model: any classifier that has what the plugin requires.
            batch: of any number of rows; auxiliary tensors that the plugin does not declare are
                left out.
            warn: its warnings go to the callers; row i of `batch` is then row i of the job's, or
                the i-th of those where this `(N,)` mask is true.

        Raises:
            InvalidRequest: the plugin refuses what it is given.
            Cancelled, DeadlineExceeded: as of `Job.track`.
        """
        known = {name: batch.tensors[name] for name in self.plugin.tensors if name in batch.tensors}
        told = None if warn is False else self.plugin.name
        job = _NestedJob(self._job, told, warn if isinstance(warn, Tensor) else None)
        try:
            return self.plugin.run(model, replace(batch, tensors=known), self.params, job)
        except InvalidRequest as error:
            raise error.within(self.field) from None


class _NestedJob(Job):
    def __init__(self, outer: Job, warns_as: str | None, mask: Tensor | None) -> None:
        super().__init__(outer.models)
        self._outer, self._warns_as, self._mask = outer, warns_as, mask

    @property
    def max_rows(self) -> int:  # type: ignore[override]
        return self._outer.max_rows

    def track(self, total: int) -> Iterator[int]:
        return self._outer.track(total)

    def warn(self, rows: Tensor, message: str) -> None:
        if self._mask is not None:
            rows = torch.zeros_like(self._mask).masked_scatter(self._mask, rows.to(self._mask))
        if self._warns_as is not None:
            self._outer.warn(rows, f"{self._warns_as}: {message}")

    def find(self, name: str) -> Plugin[Any, Any] | None:
        return self._outer.find(name)
