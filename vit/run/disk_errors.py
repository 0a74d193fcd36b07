"""What the error numbers of file systems mean here."""

import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # what a full disk and a spent quota say
UNWILLING = (*NO_ROOM, errno.EROFS, errno.EIO)  # what a disk says that may take more later
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EUCLEAN, errno.EBADMSG)  # of a file or its disk
