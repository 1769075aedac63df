"""Translation of a full disk into HTTP 507."""

from __future__ import annotations

import errno
import os

import pytest

from api.files.disk_space import full_disk_is_a_problem
from core.errors import ApiError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_while_an_upload_is_read_is_the_same_answer(number: int) -> None:
    with pytest.raises(ApiError) as caught, full_disk_is_a_problem():
        raise OSError(number, os.strerror(number))
    assert (caught.value.problem.status, caught.value.problem.code) == (507, "disk_full")


def test_other_troubles_of_the_disk_are_not_called_full() -> None:
    with pytest.raises(OSError, match="Input/output"), full_disk_is_a_problem():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
