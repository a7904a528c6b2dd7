"""Any response of a store becomes an error of pgstash, never one of Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from pgstash.errors import StorageError, StorageRefusedError, StorageUnreachableError
from pgstash.storage.s3 import codes
from pgstash.storage.s3 import errors as s3_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.lists(st.text(), max_size=2),
    st.dictionaries(st.text(), st.text(), max_size=2),
)
CODES = st.one_of(
    ODD,
    st.sampled_from([*codes.REFUSALS, *codes.TRANSIENT, *codes.GONE, "404", "²", ""]),
)


def answer(response: Mapping[str, Any], operation: str = "UploadPart") -> ClientError:
    return ClientError(response, operation)  # type: ignore[arg-type]


@given(
    error=st.fixed_dictionaries({}, optional={"Code": CODES, "Message": ODD, "RequestId": ODD}),
    metadata=st.one_of(
        ODD,
        st.fixed_dictionaries(
            {},
            optional={
                "HTTPStatusCode": st.one_of(ODD, st.integers(100, 599)),
                "HostId": ODD,
                "RequestId": ODD,
                "HTTPHeaders": ODD,
            },
        ),
    ),
    operation=st.sampled_from(["UploadPart", "GetObject", "DeleteObjects", "ListObjectsV2"]),
)
def test_any_answer_is_translated(error: dict[str, Any], metadata: object, operation: str) -> None:
    response: dict[str, Any] = {"Error": error}
    if isinstance(metadata, dict):  # botocore itself refuses to make an error of anything else
        response["ResponseMetadata"] = metadata
    failed = answer(response, operation)
    translated = s3_errors.translate(failed, "do it")
    assert isinstance(translated, StorageError)
    assert translated.message.startswith("cannot do it: ")
    assert isinstance(s3_errors.may_go_on(failed), bool)
    assert isinstance(s3_errors.wants_md5(failed), bool)


@pytest.mark.parametrize("status", [408, 425, 429, 499, 500, 502, 503, 504])
@pytest.mark.parametrize(
    "error", [{}, {"Code": None, "Message": None}, {"Code": "", "Message": ""}]
)
def test_a_bare_status_may_pass(status: int, error: dict[str, Any]) -> None:
    failed = answer({"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}})
    assert isinstance(s3_errors.translate(failed, "do it"), StorageUnreachableError)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
def test_a_bare_refusal_does_not(status: int) -> None:
    failed = answer({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
    assert isinstance(s3_errors.translate(failed, "do it"), StorageRefusedError)
