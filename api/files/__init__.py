"""Files over HTTP: multipart uploads, disk space, look-ups."""
