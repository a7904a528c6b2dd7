"""The error codes of S3, as pgstash groups them: which mean what, and what to do about it.

The codes are those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and
those that other stores were seen to return.
"""

from __future__ import annotations

# Damage in transit, or a store that cannot serve at the moment: a retry may work. The codes of
# server errors are needed for a list of errors by key, which has no status.
TRANSIENT = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "XMinioServerNotInitialized",
}
TRANSIENT_STATUS = {408, 425, 429, 499}
BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
RANGE_NOT_SATISFIABLE = 416
FIRST_SERVER_ERROR = 500
NOT_IMPLEMENTED = 501
INSUFFICIENT_STORAGE = 507

GATEWAY_GAVE_UP = {408, 499, 502, 504}
AT_WORK_ALREADY = {"ConditionalRequestConflict", "OperationAborted"}

FULL = {
    "InsufficientStorage",
    "QuotaExceeded",
    "QuotaExceededException",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
# pgstash sends a condition only when it commits an upload or continues a download. To the former
# MinIO returned 304: https://github.com/minio/minio/issues/19442
TAKEN = {"304", "412", "PreconditionFailed"}
MISSING = {"404", "NoSuchKey", "NoSuchVersion", "NotFound"}
GONE = MISSING | {"NoSuchUpload"}
# Google's store returns InvalidArgument for a request that it does not know.
UNKNOWN_REQUEST = {"405", "501", "InvalidArgument", "MethodNotAllowed", "NotImplemented"}
OF_ONE_OBJECT = {"GetObject", "HeadObject", "UploadPartCopy"}
OF_ONE_UPLOAD = {"AbortMultipartUpload", "CompleteMultipartUpload", "ListParts", "UploadPart"}
REDIRECTED = {
    "301",
    "307",
    "308",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidRegion",
    "InvalidRegionName",
    "PermanentRedirect",
    "TemporaryRedirect",
}
# The classes whose objects have to be thawed, and the answer to a request for one that is not.
ARCHIVED = {"GLACIER", "DEEP_ARCHIVE"}
NOT_THAWED = "InvalidObjectState"
UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "doesn't match")
NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "HTTP_REQUEST")

# For each code: what is wrong, and the hint.
REFUSALS = {
    "InvalidAccessKeyId": (
        "the store does not know the access key",
        "Check S3_ACCESS_KEY_ID. S3_ENDPOINT must be the store that issued the key.",
    ),
    "SignatureDoesNotMatch": (
        "the store rejects the signature",
        "Check S3_SECRET_ACCESS_KEY. With some stores, check S3_ACCESS_KEY_ID and S3_REGION too.",
    ),
    "NoSuchBucket": ("the bucket does not exist", "Check S3_BUCKET or create the bucket."),
    "InvalidBucketName": ("the name of the bucket is not valid", "Check S3_BUCKET."),
    "AccessDenied": (
        "the store denies access",
        "Allow S3_ACCESS_KEY_ID to list the bucket and to read, write and delete in it.",
    ),
    "RequestTimeTooSkewed": (
        "the clocks of this machine and the store differ too much",
        "Set the clock of this machine, preferably with NTP.",
    ),
}
REFUSALS |= dict.fromkeys(
    ("KMS.DisabledException", "KMS.KMSInvalidStateException", "KMS.NotFoundException"),
    ("KMS does not use the key", "Check S3_SSE_KMS_KEY_ID, and that the key is enabled."),
)
REFUSALS["InvalidStorageClass"] = (
    "the store does not know the storage class",
    "Check S3_STORAGE_CLASS.",
)
# A rule of the bucket protects the object: https://developers.cloudflare.com/r2/api/error-codes/
LOCKED = {"ObjectLockedByBucketPolicy"}
REFUSALS |= dict.fromkeys(
    LOCKED,
    (
        "a rule of the bucket has locked the object",
        "Set a retention of backups that is longer than the lock.",
    ),
)
# Temporary credentials that are no longer valid; a HEAD request gets only the status for it.
EXPIRED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "RequestExpired",
    "TokenRefreshRequired",
}
REFUSALS["ExpiredToken"] = (
    "the session token is not valid, or has expired",
    "Replace the temporary credentials, if they do not renew themselves.",
)
REFUSALS |= dict.fromkeys(EXPIRED, REFUSALS["ExpiredToken"])
REFUSALS["Forbidden"] = REFUSALS["AccessDenied"]
REFUSALS["Unauthorized"] = REFUSALS["InvalidAccessKeyId"]
OF_STATUS = {UNAUTHORIZED: REFUSALS["Unauthorized"], FORBIDDEN: REFUSALS["AccessDenied"]}
