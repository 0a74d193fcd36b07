"""Groups of errno values that are handled the same way."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or the quota is exceeded
TOLERATED_WRITE_ERRORS = (*DISK_FULL, errno.EROFS, errno.EIO)  # logging continues; a later write may succeed
DAMAGED_FILE_ERRORS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
    errno.EUCLEAN,
    errno.EBADMSG,
)  # the file is missing or damaged
